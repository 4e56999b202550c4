//! The v2 store of a `.snap` file, anew from the membership: what etcd up to 3.5 takes its members
//! from at boot.
//!
//! Only the tree is written. etcd decodes it into a store that is there already, so what is left
//! out (statistics, watchers' history) stays as a new store has it; 3.4.23, 3.5.1, 3.5.16 and
//! 3.5.30 boot on it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::etcd::format::members::{Member, Members};

/// Of what never ends.
const NEVER: &str = "0001-01-01T00:00:00Z";

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Store {
    root: Node,
    current_index: u64,
    current_version: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    path: String,
    created_index: u64,
    modified_index: u64,
    expire_time: &'static str,
    value: String,
    children: Option<BTreeMap<String, Node>>,
}

impl Node {
    fn folder(path: impl Into<String>, index: u64) -> Self {
        Self {
            children: Some(BTreeMap::new()),
            ..Self::leaf(path, index, String::new())
        }
    }

    fn leaf(path: impl Into<String>, index: u64, value: String) -> Self {
        Self {
            path: path.into(),
            created_index: index,
            modified_index: index,
            expire_time: NEVER,
            value,
            children: None,
        }
    }

    /// Puts `child` below, under the last part of its path.
    fn with(mut self, child: Self) -> Self {
        let name = child.path.rsplit('/').next().unwrap_or_default().to_owned();
        self.children
            .get_or_insert_with(BTreeMap::new)
            .insert(name, child);
        self
    }
}

#[derive(Serialize)]
struct RaftAttributes<'a> {
    #[serde(rename = "peerURLs")]
    peer_urls: &'a [String],
    #[serde(rename = "isLearner", skip_serializing_if = "std::ops::Not::not")]
    is_learner: bool,
}

#[derive(Serialize)]
struct Attributes<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(rename = "clientURLs", skip_serializing_if = "<[String]>::is_empty")]
    client_urls: &'a [String],
}

/// JSON of a store that holds these members, those that were removed, and the version all agreed on
/// ("3.5.0"), where it is known. Members that have not published themselves (no client URLs) have
/// no attributes, as after `member add`.
pub fn store(members: &Members, version: Option<&str>) -> Vec<u8> {
    // The store counts its changes; etcd's own numbers begin with 1.
    let mut index = 0;
    let mut next = || {
        index += 1;
        index
    };
    let mut listed = Node::folder("/0/members", 1);
    for member in members.list.values() {
        listed = listed.with(node_of(member, &mut next));
    }
    let mut cluster = Node::folder("/0", 0).with(listed);
    if !members.removed.is_empty() {
        let at = next();
        let mut removed = Node::folder("/0/removed_members", at);
        for id in &members.removed {
            removed = removed.with(Node::leaf(
                format!("/0/removed_members/{id:x}"),
                at,
                String::new(),
            ));
        }
        cluster = cluster.with(removed);
    }
    if let Some(version) = version {
        cluster = cluster.with(Node::leaf("/0/version", next(), version.to_owned()));
    }
    let root = Node::folder("/", 0)
        .with(cluster)
        .with(Node::folder("/1", 0));
    go_json(&Store {
        root,
        current_index: index,
        current_version: 2,
    })
    .into_bytes()
}

fn node_of(member: &Member, next: &mut dyn FnMut() -> u64) -> Node {
    let path = format!("/0/members/{:x}", member.id);
    let at = next();
    let raft = go_json(&RaftAttributes {
        peer_urls: &member.peer_urls,
        is_learner: member.is_learner,
    });
    let mut node =
        Node::folder(&*path, at).with(Node::leaf(format!("{path}/raftAttributes"), at, raft));
    if !member.client_urls.is_empty() {
        let own = go_json(&Attributes {
            name: &member.name,
            client_urls: &member.client_urls,
        });
        node = node.with(Node::leaf(format!("{path}/attributes"), next(), own));
    }
    node
}

/// JSON as Go's encoding/json writes it: what HTML would take for its own is escaped.
pub(crate) fn go_json(value: &impl Serialize) -> String {
    // Nothing here has a map with keys that are no strings, or a failing Serialize.
    let plain = serde_json::to_string(value).unwrap_or_default();
    let mut out = String::with_capacity(plain.len());
    for letter in plain.chars() {
        match letter {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(letter)))
            }
            letter => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::format::v2store;

    #[test]
    fn a_store_is_read_back() {
        let mut members = Members::default();
        for id in [0x2a, 7] {
            let member = Member {
                id,
                name: format!("m{id}"),
                peer_urls: vec![format!("https://10.0.0.{id}:2380/?a=<b>&c")],
                client_urls: vec![format!("https://10.0.0.{id}:2379")],
                is_learner: id == 7,
            };
            members.list.insert(id, member);
        }
        members.removed.insert(0xabc);
        assert_eq!(
            v2store::members(&store(&members, Some("3.5.0"))).unwrap(),
            members
        );
    }

    #[test]
    fn the_tree_is_that_of_a_restored_snapshot() {
        let mut members = Members::default();
        for (id, port) in [
            (0x43cc_f13c_9d84_d8d2, 2),
            (0x4ec8_19aa_19b9_f4b5, 3),
            (0x58a8_8bf9_7839_8f80, 1),
        ] {
            let peer_urls = vec![format!("http://127.0.0.1:{port}")];
            members.list.insert(
                id,
                Member {
                    id,
                    name: format!("m{port}"),
                    peer_urls,
                    ..Member::default()
                },
            );
        }
        // `Root` as `etcdutl snapshot restore` 3.5.1 writes it for these members.
        let real = include_str!("restored-store.json").trim_end();
        let ours = String::from_utf8(store(&members, None)).unwrap();
        assert_eq!(
            ours,
            format!("{{\"Root\":{real},\"CurrentIndex\":3,\"CurrentVersion\":2}}")
        );
    }
}
