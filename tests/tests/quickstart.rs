//! `etc/quickstart --once` does what README.md says.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use belfry_tests::{binaries, process};

#[test]
fn once_shows_both_messages_and_cleans_up() {
    let dir = tempfile::Builder::new().prefix("bfqs").tempdir_in("/tmp").unwrap();
    // Workers pass through it without root.
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let root = dir.path().join("root");
    let built = binaries::directory();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../etc/quickstart");
    let output = Command::new(script)
        .args(["--once", "--root"])
        .arg(&root)
        // What the tests have built is good enough here.
        .env("BELFRY_PROFILE", "dev")
        .env("CARGO_TARGET_DIR", built.parent().unwrap())
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    for text in [
        "Subject: quickstart by sendmail",
        "Subject: quickstart by SMTP",
        "Hello from sendmail(1).",
        "Hello from SMTP.",
        "Mail queue is empty",
        "all delivered; stopping",
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
    let left = process::below(&root);
    assert!(left.is_empty(), "{left:#?}");

    // What it does not know it says.
    let bad = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../etc/quickstart"))
        .arg("--sing")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(bad.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("unknown option: --sing"));
}
