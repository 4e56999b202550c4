//! Extended attributes: SELinux labels, ACLs, whatever else a file carries.

use std::collections::BTreeMap;
use std::ffi::CString;

use anyhow::{Context, Result};
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::confined::{Confined, Place};
use crate::base::fault;
use crate::guest::RealPath;
use crate::tree::{ACCESS, DEFAULT};

/// SELinux's label.
const SELINUX: &str = "security.selinux";

/// Bound to the bytes of the file they were made for, so wrong on any other.
const OF_THE_BYTES: [&[u8]; 2] = [b"security.ima", b"security.evm"];

/// How many siblings are asked for a label before the folder's own is taken.
const SIBLINGS: usize = 64;

/// The kernel's bound on one value and on the list of names (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const LARGEST: usize = 64 << 10;

/// Whether the access list is among what is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// As any other attribute.
    Copy,
    /// It stays behind: the new file is secret.
    LeaveOut,
}

/// Copies all attributes of the name at `from` (a link's own, not its target's) to the name at
/// `to`.
pub fn copy(from: &Place, to: &Place, list: List) -> Result<()> {
    let (source, target) = (from.proc_path(), to.proc_path());
    for name in names(from)? {
        let is_left_out = list == List::LeaveOut && name.as_bytes() == ACCESS.as_bytes();
        if OF_THE_BYTES.contains(&name.as_bytes()) || is_left_out {
            continue;
        }
        let mut value = Vec::with_capacity(LARGEST);
        match rustix::fs::lgetxattr(
            &source,
            name.as_c_str(),
            rustix::buffer::spare_capacity(&mut value),
        ) {
            Ok(_) => {}
            Err(Errno::NODATA) => continue,
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("reading the attribute {name:?} of {from}"));
            }
        }
        fault::call("setxattr", || {
            rustix::fs::lsetxattr(&target, name.as_c_str(), &value, XattrFlags::empty())
        })
        .with_context(|| format!("copying the attribute {name:?} of {from}"))?;
    }
    Ok(())
}

/// The value of the access list of the name itself; `None` where it has none.
pub fn access_list(place: &Place) -> Result<Option<Vec<u8>>, Errno> {
    get(place, ACCESS)
}

/// Takes the access lists away that a new folder got from the one around it, its own and the one
/// for files in it: what is staged there must not get them either, because it is moved to where
/// other rules hold.
pub fn drop_lists(folder: &Place) -> Result<()> {
    for name in [DEFAULT, ACCESS] {
        let has_it = get(folder, name)
            .with_context(|| format!("reading the attribute {name} of {folder}"))?
            .is_some();
        if has_it {
            fault::call("removexattr", || {
                rustix::fs::lremovexattr(folder.proc_path(), name)
            })
            .with_context(|| format!("taking the attribute {name} of {folder} away"))?;
        }
    }
    Ok(())
}

fn get(place: &Place, name: &str) -> Result<Option<Vec<u8>>, Errno> {
    let mut value = Vec::with_capacity(LARGEST);
    match rustix::fs::lgetxattr(
        place.proc_path(),
        name,
        rustix::buffer::spare_capacity(&mut value),
    ) {
        Ok(_) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All attributes of a name by theirs, but for what is bound to an inode.
pub(super) fn read(place: &Place) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut all = BTreeMap::new();
    for name in names(place)? {
        let mut value = Vec::with_capacity(LARGEST);
        match rustix::fs::lgetxattr(
            place.proc_path(),
            name.as_c_str(),
            rustix::buffer::spare_capacity(&mut value),
        ) {
            Ok(_) => {}
            Err(Errno::NODATA) => continue,
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("reading the attribute {name:?} of {place}"));
            }
        }
        if name.as_bytes() != b"security.evm" {
            let name = name
                .into_string()
                .with_context(|| format!("an attribute of {place} has a strange name"))?;
            all.insert(name, value);
        }
    }
    Ok(all)
}

/// Gives a name attributes that were [`read`].
pub(super) fn write(place: &Place, all: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    for (name, value) in all {
        fault::call("setxattr", || {
            rustix::fs::lsetxattr(place.proc_path(), name, value, XattrFlags::empty())
        })
        .with_context(|| format!("giving {place} its attribute {name}"))?;
    }
    Ok(())
}

/// Of these attributes those that fit a file that is new in name, or else in its bytes.
pub(super) fn that_fit(
    all: &BTreeMap<String, Vec<u8>>,
    same_name: bool,
) -> BTreeMap<String, Vec<u8>> {
    let fits = |name: &str| match same_name {
        true => !OF_THE_BYTES.contains(&name.as_bytes()),
        false => name == SELINUX,
    };
    all.iter()
        .filter(|(name, _)| fits(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Copies SELinux's label alone.
pub fn copy_label(from: &Place, to: &Place) -> Result<()> {
    let Some(label) = label_of(from)? else {
        return Ok(());
    };
    fault::call("setxattr", || {
        rustix::fs::lsetxattr(to.proc_path(), SELINUX, &label, XattrFlags::empty())
    })
    .with_context(|| format!("labelling {to}"))
}

/// Gives a new file the label of its kind's first labelled sibling in the folder where it will be,
/// else the folder's own.
pub fn label_new(confined: &Confined, future: &RealPath, staged: &Place) -> Result<()> {
    let Some(label) = label_for(confined, future, staged)? else {
        return Ok(());
    };
    fault::call("setxattr", || {
        rustix::fs::lsetxattr(staged.proc_path(), SELINUX, &label, XattrFlags::empty())
    })
    .with_context(|| format!("labelling the new file {future}"))
}

fn label_for(confined: &Confined, future: &RealPath, staged: &Place) -> Result<Option<Vec<u8>>> {
    let kind = staged
        .lstat()?
        .map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode));
    let folder = nearest_folder(confined, future)?;
    if folder == future.parent() {
        for name in confined.names(&folder)?.into_iter().take(SIBLINGS) {
            let Ok(sibling) = confined.place(&folder.child(&name)) else {
                continue;
            };
            let Ok(Some(stat)) = sibling.lstat() else {
                continue;
            };
            if Some(rustix::fs::FileType::from_raw_mode(stat.st_mode)) == kind
                && let Some(label) = label_of(&sibling)?
            {
                return Ok(Some(label));
            }
        }
    }
    let open = confined
        .open_folder(&folder)
        .with_context(|| format!("opening {folder}"))?;
    let mut value = Vec::with_capacity(LARGEST);
    match rustix::fs::fgetxattr(&open, SELINUX, rustix::buffer::spare_capacity(&mut value)) {
        Ok(_) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading the SELinux label of {folder}")),
    }
}

/// The folder that will hold the new file, or the nearest one above that is there already.
fn nearest_folder(confined: &Confined, future: &RealPath) -> Result<RealPath> {
    let mut folder = future.parent();
    loop {
        match confined.open_folder(&folder) {
            Ok(_) => return Ok(folder),
            Err(error)
                if super::confined::is_not_there(&error) && folder.as_path().parent().is_some() =>
            {
                folder = folder.parent();
            }
            Err(error) => return Err(error).with_context(|| format!("opening {folder}")),
        }
    }
}

fn label_of(place: &Place) -> Result<Option<Vec<u8>>> {
    get(place, SELINUX).with_context(|| format!("reading the SELinux label of {place}"))
}

fn names(place: &Place) -> Result<Vec<CString>> {
    let mut list = Vec::with_capacity(LARGEST);
    match rustix::fs::llistxattr(place.proc_path(), rustix::buffer::spare_capacity(&mut list)) {
        Ok(_) | Err(Errno::OPNOTSUPP) => {}
        Err(error) => {
            return Err(error).with_context(|| format!("listing the attributes of {place}"));
        }
    }
    Ok(list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .filter_map(|name| CString::new(name).ok())
        .collect())
}
