//! A bbolt database written anew, from its leaves up: elements come in the order of their keys,
//! every page is written once, and only one page of each level is held, so that memory is bounded
//! whatever the size.
//!
//! Rules from bbolt 1.3 to 1.5 (node.go, bucket.go, db.go). The two meta pages are written last:
//! what is cut short is no database. As etcd has it on Linux the free pages are not stored; there
//! are none here.

use std::collections::BTreeMap;
use std::io::SeekFrom;

use anyhow::{Context as _, Result, ensure};

use crate::change::folder::SinkFile;
use crate::etcd::format::bbolt::meta::{self, NO_FREELIST};

const HEADER: usize = 16;
const ELEMENT: usize = 16;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
/// An element of a leaf that is a bucket.
const BUCKET: u32 = 1;
/// bbolt's `MaxKeySize`.
const MAX_KEY: usize = 32_768;
/// bbolt's `MaxValueSize`.
const MAX_VALUE: usize = (1 << 31) - 2;
/// Pages are filled to nine tenths, as etcd has it for keys that only grow (`FillPercent`).
const FILL: (usize, usize) = (9, 10);
/// A branch has two children at least, however long their keys.
const MIN_CHILDREN: usize = 2;

/// A page that is being filled.
#[derive(Debug, Default)]
struct Filling {
    elements: Vec<Element>,
    /// Keys and values, one behind the other.
    data: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Element {
    flags: u32,
    key: usize,
    value: usize,
    /// In a branch: the page that it leads to.
    child: u64,
}

impl Filling {
    fn size(&self) -> usize {
        HEADER + ELEMENT * self.elements.len() + self.data.len()
    }

    fn push(&mut self, flags: u32, key: &[u8], value: &[u8], child: u64) {
        self.elements.push(Element {
            flags,
            key: key.len(),
            value: value.len(),
            child,
        });
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
    }

    fn first_key(&self) -> &[u8] {
        self.elements
            .first()
            .and_then(|first| self.data.get(..first.key))
            .unwrap_or_default()
    }

    /// Header, elements, data. Leaf: u32 flags, u32 position, u32 key, u32 value; branch: u32
    /// position, u32 key, u64 page.
    fn encode(&self, out: &mut Vec<u8>, id: u64, kind: u16, overflow: u32) {
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&(self.elements.len() as u16).to_le_bytes());
        out.extend_from_slice(&overflow.to_le_bytes());
        let mut data = 0;
        for (number, element) in self.elements.iter().enumerate() {
            // Counted from the element itself.
            let position = ((self.elements.len() - number) * ELEMENT + data) as u32;
            let (key, value) = (element.key as u32, element.value as u32);
            if kind == LEAF {
                [element.flags, position, key, value]
                    .iter()
                    .for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
            } else {
                [position, key]
                    .iter()
                    .for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
                out.extend_from_slice(&element.child.to_le_bytes());
            }
            data += element.key + element.value;
        }
        out.extend_from_slice(&self.data);
    }

    fn clear(&mut self) {
        self.elements.clear();
        self.data.clear();
    }
}

/// The file, page after page.
struct Pages<'a> {
    out: &'a mut dyn SinkFile,
    page_size: usize,
    next: u64,
    /// Reused for every page.
    encoded: Vec<u8>,
}

impl Pages<'_> {
    fn append(&mut self, page: &Filling, kind: u16) -> Result<u64> {
        let id = self.next;
        let pages = page.size().div_ceil(self.page_size);
        self.encoded.clear();
        page.encode(
            &mut self.encoded,
            id,
            kind,
            u32::try_from(pages - 1).context("a page of more than 16 TiB")?,
        );
        self.encoded.resize(pages * self.page_size, 0);
        self.out
            .write_all(&self.encoded)
            .context("writing the database")?;
        self.next += pages as u64;
        Ok(id)
    }

    fn limit(&self) -> usize {
        self.page_size * FILL.0 / FILL.1
    }
}

/// One bucket's tree.
#[derive(Debug, Default)]
struct Tree {
    leaf: Filling,
    /// From the lowest level to the root.
    branches: Vec<Filling>,
    last: Vec<u8>,
}

impl Tree {
    fn put(&mut self, pages: &mut Pages<'_>, flags: u32, key: &[u8], value: &[u8]) -> Result<()> {
        ensure!(
            !key.is_empty() && key.len() <= MAX_KEY,
            "a key of {} bytes, which bbolt does not take",
            key.len()
        );
        ensure!(
            value.len() <= MAX_VALUE,
            "a value of {} bytes, which bbolt does not take",
            value.len()
        );
        ensure!(self.last.as_slice() < key, "keys out of order");
        let grown = self.leaf.size() + ELEMENT + key.len() + value.len();
        if !self.leaf.elements.is_empty() && grown > pages.limit() {
            self.end_leaf(pages)?;
        }
        self.leaf.push(flags, key, value, 0);
        self.last.clear();
        self.last.extend_from_slice(key);
        Ok(())
    }

    fn end_leaf(&mut self, pages: &mut Pages<'_>) -> Result<()> {
        let id = pages.append(&self.leaf, LEAF)?;
        let first = self.leaf.first_key().to_vec();
        self.leaf.clear();
        self.add_child(pages, 0, &first, id)
    }

    fn add_child(
        &mut self,
        pages: &mut Pages<'_>,
        level: usize,
        key: &[u8],
        child: u64,
    ) -> Result<()> {
        if level == self.branches.len() {
            self.branches.push(Filling::default());
        }
        let Some(branch) = self.branches.get_mut(level) else {
            return Ok(());
        };
        let grown = branch.size() + ELEMENT + key.len();
        if branch.elements.len() >= MIN_CHILDREN && grown > pages.limit() {
            self.end_branch(pages, level)?;
        }
        if let Some(branch) = self.branches.get_mut(level) {
            branch.push(0, key, b"", child);
        }
        Ok(())
    }

    fn end_branch(&mut self, pages: &mut Pages<'_>, level: usize) -> Result<()> {
        let Some(branch) = self.branches.get_mut(level) else {
            return Ok(());
        };
        let id = pages.append(branch, BRANCH)?;
        let first = branch.first_key().to_vec();
        branch.clear();
        self.add_child(pages, level + 1, &first, id)
    }

    /// The root's page.
    fn finish(mut self, pages: &mut Pages<'_>) -> Result<u64> {
        if self.branches.is_empty() {
            return pages.append(&self.leaf, LEAF);
        }
        self.end_leaf(pages)?;
        let mut level = 0;
        loop {
            let branch = self.branches.get(level).context("a level of the tree")?;
            if let ([only], true) = (branch.elements.as_slice(), level + 1 == self.branches.len()) {
                return Ok(only.child);
            }
            self.end_branch(pages, level)?;
            level += 1;
        }
    }

    /// The value of the bucket's element: u64 root, u64 sequence, and behind a root of 0 the page
    /// itself where it is small (bucket.go, `inlineable`).
    fn value(self, pages: &mut Pages<'_>) -> Result<Vec<u8>> {
        let mut value = vec![0; HEADER];
        if self.branches.is_empty() && self.leaf.size() <= pages.page_size / 4 {
            self.leaf.encode(&mut value, 0, LEAF, 0);
        } else {
            value[..8].copy_from_slice(&self.finish(pages)?.to_le_bytes());
        }
        Ok(value)
    }
}

/// Writes a database.
pub struct DatabaseWriter<'a> {
    pages: Pages<'a>,
    /// Values of the root's elements.
    buckets: BTreeMap<Vec<u8>, Vec<u8>>,
    open: Option<(Vec<u8>, Tree)>,
}

impl std::fmt::Debug for DatabaseWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatabaseWriter")
            .field("next", &self.pages.next)
            .finish_non_exhaustive()
    }
}

impl<'a> DatabaseWriter<'a> {
    /// Begins a file of pages of this many bytes; `out` is at its beginning and empty, and
    /// buffers what it is given.
    ///
    /// # Errors
    /// As `out` gives them; a page size that bbolt does not have.
    pub fn new(out: &'a mut dyn SinkFile, page_size: u64) -> Result<Self> {
        ensure!(
            page_size.is_power_of_two() && (1024..=meta::LARGEST_PAGE).contains(&page_size),
            "pages of {page_size} bytes"
        );
        let page_size = usize::try_from(page_size)?;
        // The meta pages' place.
        out.write_all(&vec![0; 2 * page_size])
            .context("writing the database")?;
        let pages = Pages {
            out,
            page_size,
            next: 2,
            encoded: Vec::new(),
        };
        Ok(Self {
            pages,
            buckets: BTreeMap::new(),
            open: None,
        })
    }

    /// Begins a bucket; what is put from now on belongs to it. Buckets may come in any order, each
    /// once.
    ///
    /// # Errors
    /// As `out` gives them; a bucket that was written already.
    pub fn bucket(&mut self, name: &[u8]) -> Result<()> {
        self.end_bucket()?;
        ensure!(
            !self.buckets.contains_key(name),
            "bucket {} comes twice",
            name.escape_ascii()
        );
        self.open = Some((name.to_vec(), Tree::default()));
        Ok(())
    }

    /// Adds an element to the bucket; keys ascend.
    ///
    /// # Errors
    /// As `out` gives them; keys out of order or of a size that bbolt does not take.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let (name, tree) = self
            .open
            .as_mut()
            .context("an element outside all buckets")?;
        tree.put(&mut self.pages, 0, key, value)
            .with_context(|| format!("writing bucket {}", name.escape_ascii()))
    }

    fn end_bucket(&mut self) -> Result<()> {
        if let Some((name, tree)) = self.open.take() {
            let value = tree.value(&mut self.pages)?;
            self.buckets.insert(name, value);
        }
        Ok(())
    }

    /// Writes the root and the meta pages. Gives the file's length in bytes.
    ///
    /// # Errors
    /// As `out` gives them.
    pub fn finish(mut self) -> Result<u64> {
        self.end_bucket()?;
        let mut root = Tree::default();
        for (name, value) in &self.buckets {
            root.put(&mut self.pages, BUCKET, name, value)?;
        }
        let root = root.finish(&mut self.pages)?;
        let Pages {
            out,
            page_size,
            next,
            ..
        } = self.pages;
        out.flush().context("writing the database")?;
        out.seek(SeekFrom::Start(0))
            .context("writing the database")?;
        // As in a database that was just made: transaction N in page N % 2.
        for transaction in 0..2u64 {
            out.write_all(&meta_page(transaction, page_size, root, next))
                .context("writing the database")?;
        }
        out.flush().context("writing the database")?;
        Ok(next * page_size as u64)
    }
}

/// A whole meta page: see [`crate::etcd::format::bbolt::meta`].
fn meta_page(transaction: u64, page_size: usize, root: u64, pages: u64) -> Vec<u8> {
    let mut page = Vec::with_capacity(page_size);
    page.extend_from_slice(&transaction.to_le_bytes());
    page.extend_from_slice(&meta::FLAG.to_le_bytes());
    page.resize(HEADER, 0);
    for word in [meta::MAGIC, meta::VERSION, page_size as u32, 0] {
        page.extend_from_slice(&word.to_le_bytes());
    }
    for word in [root, 0, NO_FREELIST, pages, transaction] {
        page.extend_from_slice(&word.to_le_bytes());
    }
    let sum = meta::fnv1a(&page[HEADER..]);
    page.extend_from_slice(&sum.to_le_bytes());
    page.resize(page_size, 0);
    page
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::ops::ControlFlow;

    use super::*;
    use crate::etcd::format::bbolt::Database;
    use crate::etcd::format::file::File;
    use crate::guest::GuestPath;
    use crate::tree::MemoryTree;

    type Entries = Vec<(Vec<u8>, Vec<u8>)>;

    fn numbered(count: u32, value: impl Fn(u32) -> usize) -> Entries {
        (0..count)
            .map(|number| {
                (
                    number.to_be_bytes().to_vec(),
                    vec![number as u8; value(number)],
                )
            })
            .collect()
    }

    fn written(buckets: &[(&str, Entries)], page_size: u64) -> (Database, u64) {
        let mut out = Cursor::new(Vec::new());
        let mut writer = DatabaseWriter::new(&mut out, page_size).unwrap();
        for (name, entries) in buckets {
            writer.bucket(name.as_bytes()).unwrap();
            entries
                .iter()
                .for_each(|(key, value)| writer.put(key, value).unwrap());
        }
        let length = writer.finish().unwrap();
        let bytes = out.into_inner();
        assert_eq!(bytes.len() as u64, length);
        let guest = MemoryTree::new().file("/db", bytes).into_guest();
        (
            Database::open(File::open(&guest, &GuestPath::new("/db")).unwrap()).unwrap(),
            length,
        )
    }

    #[test]
    fn what_is_written_is_read_back() {
        let cases: [(&str, Entries); 7] = [
            ("empty", Vec::new()),
            ("small", numbered(3, |_| 10)),
            ("just inline or not", numbered(11, |_| 72)),
            ("one page", numbered(30, |_| 60)),
            ("many", numbered(60_000, |number| number as usize % 90)),
            ("large", numbered(40, |number| number as usize * 1000)),
            (
                "long keys",
                (0..60u32)
                    .map(|n| ([&n.to_be_bytes()[..], &[7; 9000]].concat(), vec![1]))
                    .collect(),
            ),
        ];
        for page_size in [1024, 4096, 65_536] {
            let (db, length) = written(&cases, page_size);
            assert_eq!(db.meta().transaction, 1);
            for (name, entries) in &cases {
                let bucket = db.bucket(name.as_bytes()).unwrap().unwrap();
                let mut read = Vec::new();
                db.walk(&bucket, None, &mut |item| {
                    read.push((item.key.to_vec(), item.value.to_vec()));
                    ControlFlow::Continue(())
                })
                .unwrap();
                assert_eq!(&read, entries, "{name}, pages of {page_size}");
                if let Some((key, value)) = entries.get(entries.len() / 2) {
                    assert_eq!(
                        db.get(&bucket, key).unwrap().as_ref(),
                        Some(value),
                        "{name}"
                    );
                }
            }
            let check = db.check(&mut |_, _| {}).unwrap();
            assert_eq!((check.free, (check.pages + 2) * page_size), (0, length));
        }
    }

    #[test]
    fn what_bbolt_would_not_take_is_refused() {
        let mut out = Cursor::new(Vec::new());
        let mut writer = DatabaseWriter::new(&mut out, 4096).unwrap();
        assert!(writer.put(b"a", b"").is_err());
        writer.bucket(b"one").unwrap();
        writer.put(b"b", b"").unwrap();
        assert!(
            writer.put(b"b", b"").is_err()
                && writer.put(b"a", b"").is_err()
                && writer.put(b"", b"").is_err()
        );
        assert!(writer.put(&[b'c'; MAX_KEY + 1], b"").is_err());
        writer.bucket(b"two").unwrap();
        writer.bucket(b"three").unwrap();
        assert!(writer.bucket(b"one").is_err());
        assert!(DatabaseWriter::new(&mut Cursor::new(Vec::new()), 4095).is_err());
    }
}
