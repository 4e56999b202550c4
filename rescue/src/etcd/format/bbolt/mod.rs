//! bbolt, the file format of etcd's database, read page by page: nothing is mapped into memory,
//! every offset is checked, a damaged file gives an error that names the page.
//!
//! All numbers are little endian. Page header: u64 id, u16 flags, u16 count, u32 overflow (further
//! pages that belong to it). Rules from bbolt 1.3 to 1.5: db.go, page.go, tx_check.go.

pub mod meta;
pub mod page;
mod stream;
pub mod walk;

pub use meta::{Meta, MetaFault};
pub use page::Page;
pub use walk::{Check, Item, Seen, Walk};

use std::ops::ControlFlow;

use super::file::{File, Held};
use crate::tree::TreeError;

/// Why a database, or a part of it, cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The guest's file system or disk.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Neither meta page is valid.
    #[error("both of its meta pages are damaged ({0}; {1})")]
    Metas(MetaFault, MetaFault),
    /// The file ends before what the meta page says; bbolt dies of "unexpected fault address"
    /// there.
    #[error("it is cut short by {0} bytes")]
    Short(u64),
    /// A page is not what it should be.
    #[error("page {page}: {what}")]
    Page {
        /// Its number.
        page: u64,
        /// What is wrong, in the words of bbolt's check where it has some.
        what: &'static str,
    },
    /// The tree is deeper, or a page larger, than any that bbolt writes.
    #[error("page {0}: larger than any page that bbolt writes")]
    Implausible(u64),
}

/// A root of a bucket: a page, or an inline page within its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bucket {
    /// The page.
    Page(u64),
    /// Small buckets: the bytes of a leaf page.
    Inline(Vec<u8>),
}

impl Bucket {
    /// From the value of a bucket's element: u64 root page, u64 sequence, an inline page where the
    /// root is 0.
    pub fn from_value(value: &[u8]) -> Option<Self> {
        let root = u64::from_le_bytes(value.get(..8)?.try_into().ok()?);
        let inline = value.get(16..)?;
        Some(if root == 0 {
            Self::Inline(inline.to_vec())
        } else {
            Self::Page(root)
        })
    }
}

/// A database seen through one of its two meta pages.
#[derive(Debug)]
pub struct Database {
    file: File,
    metas: [Result<Meta, MetaFault>; 2],
    meta: Meta,
}

impl Database {
    /// Opens it as bbolt would: by the newest valid meta page.
    ///
    /// # Errors
    /// [`Fault::Metas`], [`Fault::Short`] and those of the tree.
    pub fn open(file: File) -> Result<Self, Fault> {
        let metas = meta::read_both(&file)?;
        let meta = match metas {
            [Err(first), Err(second)] => return Err(Fault::Metas(first, second)),
            _ => metas
                .iter()
                .flatten()
                .max_by_key(|meta| meta.transaction)
                .copied(),
        };
        let Some(meta) = meta else {
            return Err(Fault::Metas(MetaFault::Short, MetaFault::Short));
        };
        let db = Self { file, metas, meta };
        match db.missing() {
            0 => Ok(db),
            missing => Err(Fault::Short(missing)),
        }
    }

    /// Opens it by the older of two valid meta pages: as it was before its last transaction. `None`
    /// where there is no such page.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub fn open_older(file: File) -> Result<Option<Self>, Fault> {
        let metas = meta::read_both(&file)?;
        let [Ok(first), Ok(second)] = metas else {
            return Ok(None);
        };
        let meta = if first.transaction < second.transaction {
            first
        } else {
            second
        };
        let db = Self { file, metas, meta };
        match db.missing() {
            0 => Ok(Some(db)),
            missing => Err(Fault::Short(missing)),
        }
    }

    fn missing(&self) -> u64 {
        self.meta
            .pages
            .saturating_mul(self.meta.page_size)
            .saturating_sub(self.file.size())
    }

    /// The meta page it is seen through.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Both meta pages.
    pub fn metas(&self) -> &[Result<Meta, MetaFault>; 2] {
        &self.metas
    }

    /// Length of the file.
    pub fn size(&self) -> u64 {
        self.file.size()
    }

    /// The file held open, where it can be, for another thread to read.
    ///
    /// # Errors
    /// As the tree gives them.
    pub fn hold(&self) -> Result<Option<Held>, Fault> {
        Ok(self.file.hold()?)
    }

    /// The bucket of that name at the top.
    ///
    /// # Errors
    /// A [`Fault`] on the way to it.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Bucket>, Fault> {
        let root = Bucket::Page(self.meta.root);
        let mut found = None;
        self.walk(&root, Some(name), &mut |item| {
            if item.key == name && item.is_bucket {
                found = Bucket::from_value(item.value);
            }
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// The value of a key.
    ///
    /// # Errors
    /// A [`Fault`] on the way to it.
    pub fn get(&self, bucket: &Bucket, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        let mut found = None;
        self.walk(bucket, Some(key), &mut |item| {
            if item.key == key && !item.is_bucket {
                found = Some(item.value.to_vec());
            }
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// The last key of a bucket.
    ///
    /// # Errors
    /// A [`Fault`] on the way to it.
    pub fn last_key(&self, bucket: &Bucket) -> Result<Option<Vec<u8>>, Fault> {
        let mut page = match bucket {
            Bucket::Page(id) => self.page(*id)?,
            Bucket::Inline(bytes) => Page::inline(bytes.clone()),
        };
        for _ in 0..walk::MAX_DEPTH {
            let Some(last) = page.count().checked_sub(1) else {
                return Ok(None);
            };
            if page.is_leaf() {
                return Ok(Some(page.leaf(last)?.key.to_vec()));
            }
            let (_, child) = page.branch(last)?;
            page = self.page(child)?;
        }
        Err(Fault::Implausible(page.id()))
    }

    /// Gives every element of a bucket from `from` on to `visitor`, in order.
    ///
    /// # Errors
    /// The first [`Fault`].
    pub fn walk(
        &self,
        bucket: &Bucket,
        from: Option<&[u8]>,
        visitor: &mut dyn FnMut(Item<'_>) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        Walk {
            db: self,
            seen: None,
            from,
        }
        .bucket(bucket, visitor)
    }

    /// Gives every element of a bucket to `visitor` and marks its pages in `seen`, which may hold
    /// those of others: it is a fault where two lead to one page.
    ///
    /// # Errors
    /// The first [`Fault`].
    pub fn walk_marking(
        &self,
        bucket: &Bucket,
        seen: &mut Seen,
        visitor: &mut dyn FnMut(Item<'_>) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let mut walk = Walk {
            db: self,
            seen: Some(std::mem::replace(seen, Seen::new(0))),
            from: None,
        };
        let done = walk.bucket(bucket, visitor);
        *seen = walk.seen.unwrap_or_else(|| Seen::new(0));
        done
    }

    /// Goes through every page that can be reached and checks what bbolt checks, giving the
    /// elements of top buckets to `visitor` with the bucket's name.
    ///
    /// # Errors
    /// The first [`Fault`].
    pub fn check(&self, visitor: &mut dyn FnMut(&[u8], Item<'_>)) -> Result<Check, Fault> {
        walk::check(self, visitor)
    }

    /// One page of a bucket, with what overflows.
    fn page(&self, id: u64) -> Result<Page, Fault> {
        page::read(&self.file, &self.meta, id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::read::sample::sound_database;
    use crate::guest::GuestPath;
    use crate::tree::MemoryTree;

    fn open(bytes: &[u8]) -> Result<Database, Fault> {
        let guest = MemoryTree::new().file("/db", bytes).into_guest();
        Database::open(File::open(&guest, &GuestPath::new("/db")).unwrap())
    }

    #[test]
    fn reads_a_small_database() {
        let db = open(&sound_database(8)).unwrap();
        assert_eq!((db.meta().transaction, db.meta().pages), (11, 4));
        let meta = db.bucket(b"meta").unwrap().unwrap();
        assert_eq!(
            db.get(&meta, b"consistent_index").unwrap(),
            Some(8u64.to_be_bytes().to_vec())
        );
        assert_eq!(db.get(&meta, b"other").unwrap(), None);
        assert_eq!(db.bucket(b"other").unwrap(), None);
        let mut count = 0;
        let check = db.check(&mut |_, _| count += 1).unwrap();
        assert_eq!((check.pages, check.free, count), (1, 1, 2));
    }

    #[test]
    fn one_damaged_meta_leaves_the_other() {
        for damaged in [20, 4096 + 20, 16 + 50, 4096 + 16 + 50] {
            let mut bytes = sound_database(8);
            bytes[damaged] ^= 0xff;
            let db = open(&bytes).unwrap();
            assert!(
                db.metas()[0].is_err() != db.metas()[1].is_err(),
                "{damaged}"
            );
        }
    }

    #[test]
    fn damage_names_the_page() {
        let mut bytes = sound_database(8);
        bytes[2 * 4096 + 8] = 7;
        assert_eq!(
            open(&bytes)
                .unwrap()
                .bucket(b"meta")
                .unwrap_err()
                .to_string(),
            "page 2: invalid page type"
        );
        assert!(matches!(open(&bytes[..3 * 4096]), Err(Fault::Short(4096))));
        assert!(matches!(
            open(b""),
            Err(Fault::Metas(MetaFault::Short, MetaFault::Short))
        ));
    }

    #[test]
    fn random_damage_neither_panics_nor_hangs() {
        let good = sound_database(8);
        let mut state = 5u64;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize
        };
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..1 + random() % 4 {
                let at = 8192 + random() % 400;
                bytes[at] = random() as u8;
            }
            if let Ok(db) = open(&bytes) {
                let _ = db.check(&mut |_, _| {});
                let _ = db.last_key(&Bucket::Page(2));
                let _ = db
                    .bucket(b"meta")
                    .map(|bucket| bucket.map(|bucket| db.get(&bucket, b"term")));
            }
        }
    }
}
