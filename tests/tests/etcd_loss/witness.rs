//! What the disks' logs still held when they were given to `rescue repair`. A write that is lost
//! although one of them held it was there to be kept: whatever the other disks had dropped, that is
//! a fault of ours.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;

use anyhow::Result;
use rescue::etcd::format::request::Request;
use rescue::etcd::read::member::{MemberData, Place};
use rescue::guest::{Guest, GuestPath};
use rescue::tree::FolderTree;

/// Writes in the readable part of any log: of each a key and what became of it.
#[derive(Debug, Default)]
pub struct Witness(HashSet<u64>);

fn hash(key: &[u8], value: Option<&[u8]>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, value).hash(&mut hasher);
    hasher.finish()
}

impl Witness {
    pub fn hear(&mut self, data_dir: &Path) -> Result<()> {
        if !data_dir.exists() {
            return Ok(());
        }
        let guest = Guest::new("witness", Rc::new(FolderTree::open(data_dir)?), Vec::new());
        let data = MemberData::read(&guest, &Place::new(GuestPath::new("/"), None));
        data.log.visit(&guest, 0, u64::MAX, &mut |entry| {
            match Request::parse(entry.data) {
                Ok(Request::Put(put)) => drop(self.0.insert(hash(put.key, Some(put.value)))),
                Ok(Request::Delete(range)) => drop(self.0.insert(hash(range.key, None))),
                _ => {}
            }
            ControlFlow::Continue(())
        })?;
        Ok(())
    }

    pub fn has(&self, key: &str, value: Option<&str>) -> bool {
        self.0
            .contains(&hash(key.as_bytes(), value.map(str::as_bytes)))
    }
}
