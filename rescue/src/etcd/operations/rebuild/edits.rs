//! A database written anew with a few things changed: read bucket by bucket, element by element,
//! and written as it is read.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use anyhow::{Result, bail, ensure};

use crate::change::folder::SinkFile;
use crate::etcd::format::bbolt::{Bucket, Database, Fault, Item, Seen};
use crate::etcd::read::backend::{KEY, Revision};
use crate::etcd::read::history::History;
use crate::etcd::write::{bbolt::DatabaseWriter, behind};

/// More buckets than etcd has.
const MAX_BUCKETS: usize = 1000;

/// Takes an element: key and value.
pub type Visitor<'v> = dyn FnMut(&[u8], &[u8]) -> Result<()> + 'v;

/// What a database is made of, wherever it comes from.
pub trait Contents {
    /// Bytes of a page.
    fn page_size(&self) -> u64;

    /// Names of the buckets.
    ///
    /// # Errors
    /// What cannot be read.
    fn buckets(&self) -> Result<Vec<Vec<u8>>>;

    /// Gives every element of a bucket to `visitor`, in the order of the keys.
    ///
    /// # Errors
    /// What cannot be read, and those of the visitor.
    fn each(&self, bucket: &[u8], visitor: &mut Visitor<'_>) -> Result<()>;
}

impl Contents for Database {
    fn page_size(&self) -> u64 {
        self.meta().page_size
    }

    fn buckets(&self) -> Result<Vec<Vec<u8>>> {
        names(|root, visitor| self.walk(root, None, visitor), self)
    }

    fn each(&self, name: &[u8], visitor: &mut Visitor<'_>) -> Result<()> {
        elements(
            |bucket, visitor| self.walk(bucket, None, visitor),
            self,
            name,
            visitor,
        )
    }
}

/// A database that is gone through once, and of which everything that is given is checked as bbolt
/// checks it.
#[derive(Debug)]
pub struct Checked<'a> {
    db: &'a Database,
    seen: RefCell<Seen>,
}

impl<'a> Checked<'a> {
    /// Nothing of it was given yet.
    pub fn new(db: &'a Database) -> Self {
        Self {
            db,
            seen: RefCell::new(Seen::new(db.meta().pages)),
        }
    }

    fn walk(&self, bucket: &Bucket, visitor: &mut Items<'_>) -> Result<(), Fault> {
        self.db
            .walk_marking(bucket, &mut self.seen.borrow_mut(), visitor)
    }
}

impl Contents for Checked<'_> {
    fn page_size(&self) -> u64 {
        self.db.page_size()
    }

    fn buckets(&self) -> Result<Vec<Vec<u8>>> {
        names(|root, visitor| self.walk(root, visitor), self.db)
    }

    fn each(&self, name: &[u8], visitor: &mut Visitor<'_>) -> Result<()> {
        elements(
            |bucket, visitor| self.walk(bucket, visitor),
            self.db,
            name,
            visitor,
        )
    }
}

/// Takes an element as it is in a page.
type Items<'v> = dyn FnMut(Item<'_>) -> ControlFlow<()> + 'v;

fn names(
    walk: impl FnOnce(&Bucket, &mut Items<'_>) -> Result<(), Fault>,
    db: &Database,
) -> Result<Vec<Vec<u8>>> {
    let (mut names, mut strange) = (Vec::new(), false);
    walk(&Bucket::Page(db.meta().root), &mut |item| {
        strange |= !item.is_bucket || names.len() >= MAX_BUCKETS;
        names.push(item.key.to_vec());
        if strange {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    ensure!(
        !strange,
        "the database's root holds something that is no bucket of etcd's"
    );
    Ok(names)
}

fn elements(
    walk: impl FnOnce(&Bucket, &mut Items<'_>) -> Result<(), Fault>,
    db: &Database,
    name: &[u8],
    visitor: &mut Visitor<'_>,
) -> Result<()> {
    let Some(bucket) = db.bucket(name)? else {
        return Ok(());
    };
    let mut failed = None;
    walk(&bucket, &mut |item| {
        let done = match item.is_bucket {
            true => Err(anyhow::anyhow!(
                "bucket {} holds another one",
                name.escape_ascii()
            )),
            false => visitor(item.key, item.value),
        };
        match done {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(()), Err)
}

/// By key: the new value, or none.
pub type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// What is to be different.
#[derive(Debug, Default)]
pub struct Edits {
    /// Buckets whose old elements are all left out.
    pub emptied: BTreeSet<Vec<u8>>,
    /// By bucket.
    pub changes: BTreeMap<Vec<u8>, Changes>,
    /// Of the keys' history only what a compaction at this revision leaves.
    pub compaction: Option<(i64, History)>,
}

impl Edits {
    /// Sets a value.
    pub fn set(&mut self, bucket: &[u8], key: &[u8], value: Vec<u8>) {
        self.changes
            .entry(bucket.to_vec())
            .or_default()
            .insert(key.to_vec(), Some(value));
    }

    /// Takes a value out.
    pub fn remove(&mut self, bucket: &[u8], key: &[u8]) {
        self.changes
            .entry(bucket.to_vec())
            .or_default()
            .insert(key.to_vec(), None);
    }

    /// Leaves all old elements of a bucket out.
    pub fn empty(&mut self, bucket: &[u8]) {
        self.emptied.insert(bucket.to_vec());
    }

    /// Compacts at `revision`: goes through the history once before it is written.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn compact(&mut self, contents: &dyn Contents, revision: i64) -> Result<()> {
        let mut history = History::new(revision, revision);
        loop {
            contents.each(KEY, &mut |key, value| {
                history.add(key, value);
                Ok(())
            })?;
            if !history.needs_another_pass() {
                break;
            }
        }
        if !history.is_whole() {
            bail!("the history has more entries than are numbered");
        }
        self.compaction = Some((revision, history));
        Ok(())
    }

    fn drops(&self, bucket: &[u8], number: u64, key: &[u8]) -> bool {
        let Some((revision, history)) = self.compaction.as_ref().filter(|_| bucket == KEY) else {
            return false;
        };
        let is_older = Revision::parse(key).is_some_and(|(at, _)| at.main <= *revision);
        is_older && history.is_superfluous(number)
    }

    /// Writes all of `contents` with these changes. Gives the length in bytes.
    ///
    /// # Errors
    /// What cannot be read or written.
    pub fn write(&self, contents: &dyn Contents, out: &mut dyn SinkFile) -> Result<u64> {
        behind::write(out, |out| self.write_all(contents, out))
    }

    fn write_all(&self, contents: &dyn Contents, out: &mut dyn SinkFile) -> Result<u64> {
        let there: BTreeSet<Vec<u8>> = contents.buckets()?.into_iter().collect();
        let mut writer = DatabaseWriter::new(out, contents.page_size())?;
        let names: BTreeSet<&Vec<u8>> = there.iter().chain(self.changes.keys()).collect();
        for name in names {
            writer.bucket(name)?;
            let is_kept = there.contains(name) && !self.emptied.contains(name);
            self.bucket(name, is_kept.then_some(contents), &mut writer)?;
        }
        writer.finish()
    }

    fn bucket(
        &self,
        name: &[u8],
        contents: Option<&dyn Contents>,
        writer: &mut DatabaseWriter<'_>,
    ) -> Result<()> {
        let mut changes = self.changes.get(name).into_iter().flatten().peekable();
        if let Some(contents) = contents {
            let mut number = 0;
            contents.each(name, &mut |key, value| {
                while let Some((new, value)) = changes.next_if(|(new, _)| new.as_slice() < key) {
                    value
                        .as_ref()
                        .map_or(Ok(()), |value| writer.put(new, value))?;
                }
                let this = number;
                number += 1;
                match changes.next_if(|(new, _)| new.as_slice() == key) {
                    Some((_, Some(value))) => writer.put(key, value),
                    Some((_, None)) => Ok(()),
                    None if self.drops(name, this, key) => Ok(()),
                    None => writer.put(key, value),
                }
            })?;
        }
        for (key, value) in changes {
            value
                .as_ref()
                .map_or(Ok(()), |value| writer.put(key, value))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::etcd::format::file::File;
    use crate::etcd::read::sample::database;
    use crate::guest::GuestPath;
    use crate::tree::MemoryTree;

    fn open(bytes: &[u8]) -> Database {
        let guest = MemoryTree::new().file("/db", bytes).into_guest();
        Database::open(File::open(&guest, &GuestPath::new("/db")).unwrap()).unwrap()
    }

    fn all(db: &Database) -> Vec<(Vec<u8>, Vec<u8>, Vec<u8>)> {
        let mut all = Vec::new();
        for name in db.buckets().unwrap() {
            db.each(&name, &mut |key, value| {
                all.push((name.clone(), key.to_vec(), value.to_vec()));
                Ok(())
            })
            .unwrap();
        }
        all
    }

    #[test]
    fn a_page_that_two_buckets_lead_to_is_a_fault() {
        let mut out = Cursor::new(Vec::new());
        let mut writer = DatabaseWriter::new(&mut out, 4096).unwrap();
        for name in [b"a", b"b"] {
            writer.bucket(name).unwrap();
            writer.put(b"key", &[7; 3000]).unwrap();
        }
        writer.finish().unwrap();
        let mut bytes = out.into_inner();
        let db = open(&bytes);
        let root = |name: &[u8]| match db.bucket(name).unwrap().unwrap() {
            Bucket::Page(root) => root,
            Bucket::Inline(_) => panic!("a small bucket"),
        };
        let (a, b) = (root(b"a").to_le_bytes(), root(b"b").to_le_bytes());
        let write = |bytes: &[u8]| {
            Edits::default().write(&Checked::new(&open(bytes)), &mut Cursor::new(Vec::new()))
        };
        write(&bytes).unwrap();
        // The root's page holds the buckets' names, each with its own root behind it.
        let at = bytes
            .windows(9)
            .position(|bytes| bytes[0] == b'b' && bytes[1..] == b)
            .unwrap();
        bytes[at + 1..at + 9].copy_from_slice(&a);
        assert!(
            write(&bytes)
                .unwrap_err()
                .to_string()
                .contains("multiple references")
        );
    }

    #[test]
    fn changes_are_merged_in_order() {
        let db = open(&database(&[
            ("a", &[(b"b", b"1"), (b"d", b"2"), (b"f", b"3")]),
            ("gone", &[(b"x", b"y")]),
        ]));
        let mut edits = Edits::default();
        for (key, value) in [(&b"a"[..], &b"new"[..]), (b"d", b"other"), (b"g", b"last")] {
            edits.set(b"a", key, value.to_vec());
        }
        edits.remove(b"a", b"f");
        edits.remove(b"a", b"e");
        edits.empty(b"gone");
        edits.set(b"made", b"k", b"v".to_vec());
        let mut out = Cursor::new(Vec::new());
        edits.write(&db, &mut out).unwrap();
        let read = all(&open(&out.into_inner()));
        let expected: [(&str, &str, &str); 5] = [
            ("a", "a", "new"),
            ("a", "b", "1"),
            ("a", "d", "other"),
            ("a", "g", "last"),
            ("made", "k", "v"),
        ];
        let shown: Vec<(String, String, String)> = read
            .into_iter()
            .map(|(bucket, key, value)| {
                let text = |bytes| String::from_utf8(bytes).unwrap();
                (text(bucket), text(key), text(value))
            })
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(a, b, c)| ((*a).into(), (*b).into(), (*c).into()))
            .collect();
        assert_eq!(shown, expected);
    }
}
