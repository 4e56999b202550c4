//! The v2 store in a `.snap` file, as far as it holds the membership
//! (server/etcdserver/api/membership/storev2.go).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::members::{Member, Members};

#[derive(Deserialize)]
struct Store {
    #[serde(rename = "Root")]
    root: Root,
}

/// Only the cluster's own branch is kept: others may be users' data of any size.
#[derive(Deserialize)]
struct Root {
    #[serde(rename = "Children", default)]
    children: Option<Branches>,
}

#[derive(Deserialize)]
struct Branches {
    #[serde(rename = "0", default)]
    cluster: Option<Node>,
}

#[derive(Deserialize, Default)]
struct Node {
    #[serde(rename = "Value", default)]
    value: String,
    #[serde(rename = "Children", default)]
    children: Option<BTreeMap<String, Node>>,
}

impl Node {
    fn child(&self, name: &str) -> Option<&Self> {
        self.children.as_ref()?.get(name)
    }

    fn children(&self) -> impl Iterator<Item = (&String, &Self)> {
        self.children.iter().flatten()
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RaftAttributes {
    #[serde(rename = "peerURLs")]
    peer_urls: Option<Vec<String>>,
    is_learner: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Attributes {
    name: String,
    #[serde(rename = "clientURLs")]
    client_urls: Option<Vec<String>>,
}

/// Members and removed members; `None` where the bytes are no v2 store.
pub fn members(json: &[u8]) -> Option<Members> {
    let store: Store = serde_json::from_slice(json).ok()?;
    let mut members = Members::default();
    let Some(cluster) = store.root.children.and_then(|branches| branches.cluster) else {
        return Some(members);
    };
    for (id, node) in cluster
        .child("members")
        .into_iter()
        .flat_map(Node::children)
    {
        let Ok(id) = u64::from_str_radix(id, 16) else {
            continue;
        };
        members.list.insert(id, member(id, node));
    }
    for (id, _) in cluster
        .child("removed_members")
        .into_iter()
        .flat_map(Node::children)
    {
        members.removed.extend(u64::from_str_radix(id, 16));
    }
    Some(members)
}

fn member(id: u64, node: &Node) -> Member {
    fn json<T: Default + for<'a> Deserialize<'a>>(node: Option<&Node>) -> T {
        node.and_then(|node| serde_json::from_str(&node.value).ok())
            .unwrap_or_default()
    }
    let raft: RaftAttributes = json(node.child("raftAttributes"));
    let own: Attributes = json(node.child("attributes"));
    Member {
        id,
        name: own.name,
        peer_urls: raft.peer_urls.unwrap_or_default(),
        client_urls: own.client_urls.unwrap_or_default(),
        is_learner: raft.is_learner,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_members_and_removed_ones() {
        let json = br#"{"Root":{"Path":"/","Value":"","Children":{"0":{"Path":"/0","Value":"","Children":{
            "members":{"Value":"","Children":{"8e9e05c52164694d":{"Value":"","Children":{
                "attributes":{"Value":"{\"name\":\"master01\",\"clientURLs\":[\"https://10.0.0.1:2379\"]}","Children":null},
                "raftAttributes":{"Value":"{\"peerURLs\":[\"https://10.0.0.1:2380\"],\"isLearner\":true}","Children":null}}}}},
            "removed_members":{"Value":"","Children":{"a":{"Value":"removed","Children":null}}}}},
            "1":{"Path":"/1","Value":"","Children":{"user":{"Value":"x"}}}}},"WatcherHub":{},"CurrentIndex":4,"CurrentVersion":2}"#;
        let members = members(json).unwrap();
        let member = &members.list[&0x8e9e_05c5_2164_694d];
        assert_eq!(
            (member.name.as_str(), member.is_learner),
            ("master01", true)
        );
        assert_eq!(member.peer_urls, ["https://10.0.0.1:2380"]);
        assert!(members.removed.contains(&10));
        assert!(super::members(b"{}").is_none());
        assert!(
            super::members(br#"{"Root":{"Children":null}}"#)
                .unwrap()
                .list
                .is_empty()
        );
    }
}
