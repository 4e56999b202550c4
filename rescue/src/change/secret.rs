//! What a file with a secret in it (a private key, a kubeconfig with a key) may be like. A new key
//! replaces an old file, whose mode and access list somebody may have opened to everybody; the new
//! file must not be born open.
//!
//! Owner, group and SELinux label stay. This is the only place with the rule: staging
//! ([`crate::repair::stage`]) and planned trees ask it for the mode, the plan for what it says.

use std::path::Path;

use super::{Attributes, Change};
use crate::guest::{Guest, GuestPath};
use crate::tree::{AccessList, FileKind, Meta};

/// Read and write, as bits of the owner.
const OWNER: u32 = 0o600;
/// Read, as a bit of the group.
const GROUP_READ: u32 = 0o040;
/// Read, write and execute, as bits of all others.
const OTHERS: u32 = 0o007;
/// Write, as a bit of all others.
const OTHERS_WRITE: u32 = 0o002;
/// In a folder with this bit nobody replaces somebody else's file.
const STICKY: u32 = 0o1000;

/// Whether the bytes hold a private key: PEM of any kind, or one inline in a kubeconfig.
pub fn holds_private_key(bytes: &[u8]) -> bool {
    const SIGNS: [&[u8]; 2] = [b"PRIVATE KEY-----", b"client-key-data"];
    SIGNS
        .iter()
        .any(|sign| bytes.windows(sign.len()).any(|part| part == *sign))
}

/// Mode of a new secret file where the one that it replaces, or the writer, has `mode`.
///
/// Left of it are reading and writing by the owner, and reading by the group: 0640 with the group
/// of etcd's user is meant so. A file that all others could use too was opened without such a
/// thought, so the group keeps it only where it is not root's own. `list`: the old access list.
/// With one, the group's bits of the mode are the list's mask, and the list has the group's own.
pub fn mode(mode: u32, gid: u32, list: Option<&AccessList>) -> u32 {
    let group = list.map_or(mode, |list| list.owning_group() << 3) & GROUP_READ;
    let is_meant = mode & OTHERS == 0 || gid != 0;
    (mode & OWNER) | if is_meant { group } else { 0 }
}

/// What a change takes away from the file that it replaces, one line for each thing, and whether
/// others can replace it in turn.
pub fn remarks(guest: &Guest, change: &Change) -> Vec<String> {
    let Change::Write {
        path,
        content,
        attributes,
        ..
    } = change
    else {
        return Vec::new();
    };
    if !content.is_secret() {
        return Vec::new();
    }
    let tree = guest.tree();
    let mut lines = Vec::new();
    if let Ok(old) = tree.lstat(path.as_path())
        && old.kind == FileKind::Regular
    {
        let list = tree.access_list(path.as_path());
        let new = match attributes {
            Attributes::Keep => mode(
                old.mode,
                old.gid,
                list.as_ref().ok().and_then(Option::as_ref),
            ),
            Attributes::Set { mode, gid, .. } => crate::change::secret::mode(*mode, *gid, None),
        };
        lines.extend(
            mode_line(&old, new, list.as_ref().is_ok_and(Option::is_some))
                .map(|line| format!("{path}: {line}")),
        );
        lines.extend(match list {
            Ok(list) => list
                .as_ref()
                .and_then(list_line)
                .map(|line| format!("{path}: {line}")),
            Err(error) => Some(format!(
                "{path}: its access list is dropped, if it has one: {error}"
            )),
        });
    }
    let folders = path.as_path().ancestors().skip(1);
    lines.extend(folders.filter_map(|folder| open_folder(guest, folder)));
    lines
}

/// `has_list`: the group's bits of the old mode are the mask of its access list.
fn mode_line(old: &Meta, new: u32, has_list: bool) -> Option<String> {
    let lost = old.mode & !new;
    if lost == 0 {
        return None;
    }
    let why = match () {
        () if lost & 0o004 != 0 => ": everybody on this node could read the key",
        () if lost & 0o002 != 0 => ": everybody on this node could overwrite the key",
        // Said of the list.
        () if has_list => "",
        () if lost & 0o040 != 0 => ": its group could read the key",
        () if lost & 0o020 != 0 => ": its group could overwrite the key",
        () => "",
    };
    Some(format!("mode {:04o} becomes {new:04o}{why}", old.mode))
}

fn list_line(list: &AccessList) -> Option<String> {
    let named = list.named();
    let words: Vec<String> = named
        .iter()
        .map(|(who, permissions)| {
            let what = match permissions & 6 {
                6 => "read and overwrite",
                4 => "read",
                2 => "overwrite",
                _ => "execute",
            };
            format!("it let {who} {what} the key")
        })
        .collect();
    match words.is_empty() {
        true => Some("its access list is dropped".to_owned()),
        false => Some(format!("its access list is dropped: {}", words.join(", "))),
    }
}

/// Says so of a folder in which everybody may replace the files of others.
fn open_folder(guest: &Guest, folder: &Path) -> Option<String> {
    let meta = guest.tree().lstat(folder).ok()?;
    let is_open = meta.kind == FileKind::Directory
        && meta.mode & OTHERS_WRITE != 0
        && meta.mode & STICKY == 0;
    is_open.then(|| {
        let folder = GuestPath::new(folder);
        format!(
            "{folder} stays open to everybody (mode {:04o}): whoever is on this node can replace \
             what is in it; after boot: chmod o-w {folder}",
            meta.mode
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// user::rw-, user:1000:rw-, group::GROUP, mask::rw-, other::---
    fn list(group: u8) -> AccessList {
        let mut value = vec![2, 0, 0, 0];
        for (tag, permissions, id) in [
            (1u8, 6, u32::MAX),
            (2, 6, 1000),
            (4, group, u32::MAX),
            (0x10, 6, u32::MAX),
            (0x20, 0, u32::MAX),
        ] {
            value.extend([tag, 0, permissions, 0]);
            value.extend(id.to_le_bytes());
        }
        AccessList::from_xattr(&value).expect("a list")
    }

    #[test]
    fn a_secret_is_the_owners_and_at_most_the_groups_to_read() {
        for (old, gid, new) in [
            (0o600, 0, 0o600),
            (0o400, 0, 0o400),
            (0o640, 0, 0o640),
            (0o640, 52034, 0o640),
            (0o660, 52034, 0o640),
            (0o644, 0, 0o600),
            (0o644, 52034, 0o640),
            (0o604, 52034, 0o600),
            (0o777, 0, 0o600),
            (0o4755, 0, 0o600),
            (0o7777, 0, 0o600),
            (0o1600, 0, 0o600),
            (0o622, 0, 0o600),
        ] {
            assert_eq!(mode(old, gid, None), new, "{old:04o} of group {gid}");
        }
        for old in 0..=0o7777 {
            for gid in [0, 7] {
                let new = mode(old, gid, None);
                assert_eq!(new & !0o640, 0, "{old:04o} becomes {new:04o}");
                assert_eq!(
                    new & !old,
                    0,
                    "{old:04o} becomes {new:04o}: more than before"
                );
            }
        }
    }

    #[test]
    fn the_mask_of_a_list_is_not_the_groups_permission() {
        assert_eq!(mode(0o660, 7, Some(&list(0))), 0o600);
        assert_eq!(mode(0o660, 7, Some(&list(4))), 0o640);
    }

    #[test]
    fn keys_are_found_wherever_they_stand() {
        for secret in [
            "-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\n",
            "-----BEGIN PRIVATE KEY-----\n",
            "users:\n- name: a\n  user: {client-key-data: eA==}\n",
        ] {
            assert!(holds_private_key(secret.as_bytes()), "{secret}");
        }
        for public in [
            "",
            "-----BEGIN CERTIFICATE-----\n",
            "-----BEGIN PUBLIC KEY-----\n",
            "client-key: /a.key\n",
        ] {
            assert!(!holds_private_key(public.as_bytes()), "{public}");
        }
    }
}
