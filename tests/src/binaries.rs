//! binaries - the workspace's programs, built once a test process
//!
//! Cargo hands an integration test only the programs of its own package, so the others are built
//! here, with the same profile and into the same directory. When cargo has built them already this
//! takes no time.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// The directory that holds `master`, `smtpd`, `sendmail` and so on.
///
/// # Panics
/// They cannot be built.
pub fn directory() -> &'static Path {
    DIRECTORY.get_or_init(build)
}

fn build() -> PathBuf {
    // .../target/PROFILE/deps/test-0123456789abcdef
    let test = env::current_exe().expect("a test knows its own path");
    let directory = test
        .ancestors()
        .find(|dir| dir.file_name().is_some_and(|name| name == "deps"))
        .and_then(Path::parent)
        .expect("a test lies in the directory deps")
        .to_owned();
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--workspace", "--bins"])
        .args(["--profile", profile])
        .arg("--target-dir")
        .arg(directory.parent().expect("a profile lies in a directory"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .output()
        .expect("cargo runs a test, so cargo can be run");
    assert!(
        output.status.success(),
        "cargo build --bins: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    directory
}
