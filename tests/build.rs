//! Which foreign peers are installed: `cfg(peer_postfix)`, `cfg(peer_swaks)`, `cfg(peer_python)`,
//! `cfg(peer_prometheus)`.
//!
//! A test against a missing peer is ignored with the reason. With BELFRY_REQUIRE_PEERS=1 a missing
//! peer is a failure, so that the gate cannot pass because nothing was there.

#[expect(unreachable_pub, reason = "the tests use it as well, as a module of their own")]
#[path = "src/peer.rs"]
mod peer;

fn main() {
    println!("cargo::rerun-if-env-changed=PATH");
    println!("cargo::rerun-if-env-changed={}", peer::REQUIRE);
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/peer.rs");
    for peer in peer::ALL {
        let found = peer.find();
        if found.iter().all(Option::is_some) {
            println!("cargo::rustc-cfg=peer_{}", peer.name);
        } else {
            // It may come any time; its place tells when.
            println!("cargo::rerun-if-changed=/usr/sbin");
            println!("cargo::rerun-if-changed=/usr/bin");
            if peer::required() {
                let module = peer.module.map(|module| format!(" with {module}"));
                let names = peer.programs.join(", ") + &module.unwrap_or_default();
                println!("cargo::error=peer {}: missing one of: {names}", peer.name);
            }
        }
        for path in found.into_iter().flatten() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
}
