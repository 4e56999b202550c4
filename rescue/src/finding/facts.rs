//! Facts that are dear to read: once for each state of the guest, however many checks ask.

use std::cell::OnceCell;
use std::fmt;
use std::rc::Rc;

use super::Context;
use crate::etcd::read::locate;
use crate::etcd::read::member::MemberData;
use crate::etcd::read::status::Found;
use crate::pki::inventory::Inventory;

/// What has been read of one state of a guest: of the disk as it is, or as it will be after some
/// remedies.
#[derive(Default)]
pub struct Facts {
    inventory: OnceCell<Rc<Inventory>>,
    member: OnceCell<Option<Rc<EtcdMember>>>,
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts").finish_non_exhaustive()
    }
}

/// The etcd member of a node.
pub struct EtcdMember {
    /// Where it is and how it is started.
    pub found: Found,
    /// Its log, snapshots and database.
    pub data: MemberData,
}

impl fmt::Debug for EtcdMember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdMember")
            .field("found", &self.found)
            .finish_non_exhaustive()
    }
}

impl Context<'_> {
    /// The certificates of this node as its own disk has them.
    pub fn inventory(&self) -> Rc<Inventory> {
        let read = || Inventory::read(self.guest, self.node, self.settings.now);
        Rc::clone(self.facts.inventory.get_or_init(|| Rc::new(read())))
    }

    /// The etcd member of this node; `None` where it has none.
    pub fn etcd_member(&self) -> Option<Rc<EtcdMember>> {
        let read = || {
            let found = locate::on_node(self.guest, self.node)?;
            let data = MemberData::read(self.guest, &found.place);
            Some(Rc::new(EtcdMember { found, data }))
        };
        self.facts.member.get_or_init(read).clone()
    }
}
