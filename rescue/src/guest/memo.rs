//! What was found out about a file by reading all of it: once for a guest as it was opened, however
//! many ask.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use super::{Guest, RealPath};

/// By the answer's kind and the file's path.
type Answers = BTreeMap<(TypeId, PathBuf), Rc<dyn Any>>;

/// What is known. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Memo(Rc<RefCell<Answers>>);

impl Guest {
    /// What `find_out` says of the file at `path`, which is asked once for each kind of answer. Of
    /// a system that is running every time: its files change.
    pub fn once<T: 'static>(&self, path: &RealPath, find_out: impl FnOnce() -> T) -> Rc<T> {
        let key = (TypeId::of::<T>(), path.as_path().to_owned());
        let known = self.memo.0.borrow().get(&key).map(Rc::clone);
        if let Some(known) = known
            .filter(|_| !self.live)
            .and_then(|known| known.downcast().ok())
        {
            return known;
        }
        let found = Rc::new(find_out());
        self.memo.0.borrow_mut().insert(key, Rc::<T>::clone(&found));
        found
    }
}

#[cfg(test)]
mod tests {
    use crate::guest::GuestPath;
    use crate::tree::MemoryTree;

    #[test]
    fn asks_once_until_the_tree_is_another() {
        let mut guest = MemoryTree::new()
            .file("/db", "x")
            .file("/other", "y")
            .into_guest();
        let db = guest.resolve(&GuestPath::new("/db")).unwrap();
        let other = guest.resolve(&GuestPath::new("/other")).unwrap();
        assert_eq!(*guest.once(&db, || 1u32), 1);
        assert_eq!(*guest.clone().once(&db, || 2u32), 1);
        assert_eq!(*guest.once(&db, || "another kind"), "another kind");
        assert_eq!(*guest.once(&other, || 3u32), 3);
        assert_eq!(*guest.with_tree(guest.tree()).once(&db, || 4u32), 4);
        assert_eq!(*guest.once(&db, || 5u32), 1);
        guest.live = true;
        assert_eq!(*guest.once(&db, || 6u32), 6);
    }
}
