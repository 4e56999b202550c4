//! Where people keep their kubeconfigs.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use crate::guest::{Guest, GuestPath};

/// /root, every folder of /home, and the homes of /etc/passwd.
pub fn homes(guest: &Guest) -> BTreeSet<GuestPath> {
    let mut homes: BTreeSet<GuestPath> = BTreeSet::from([GuestPath::new("/root")]);
    let home = GuestPath::new("/home");
    homes.extend(guest.read_dir(&home).unwrap_or_default().iter().map(|entry| home.join(&entry.name)));
    let passwd = guest.read(&GuestPath::new("/etc/passwd")).unwrap_or_default();
    for line in passwd.split(|byte| *byte == b'\n') {
        if let Some(folder) = line.split(|byte| *byte == b':').nth(5).filter(|folder| folder.starts_with(b"/")) {
            homes.insert(GuestPath::new(PathBuf::from(OsString::from_vec(folder.to_vec()))));
        }
    }
    homes
}
