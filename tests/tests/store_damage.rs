//! The queue database under attack: links where it should be, damage of every kind, and what became
//! of the mail that was in it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use belfry_tests::instance::Instance;

/// `alertq list` changed owner and mode of what a compromised worker had linked to.
#[test]
fn alertq_as_root_follows_no_link_of_the_mail_owner() {
    let instance = Instance::new();
    instance.write();
    let target = instance.root().join("secret");
    fs::write(&target, "").unwrap();
    fs::set_permissions(&target, Permissions::from_mode(0o644)).unwrap();
    let before = fs::metadata(&target).unwrap();
    symlink(&target, instance.queue().join("queue/queue.db")).unwrap();
    let output = instance.command("alertq").arg("list").output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    let after = fs::metadata(&target).unwrap();
    assert_eq!((after.mode(), after.len()), (before.mode(), 0), "root followed the link");
    let names = fs::read_dir(instance.root()).unwrap().map(|e| e.unwrap().file_name());
    assert!(!names.into_iter().any(|n| n.to_string_lossy().starts_with("secret-")));
    instance.finish(&[]);
}
