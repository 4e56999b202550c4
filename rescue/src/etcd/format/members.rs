//! Who belongs to the cluster: as a snapshot, the database, or the log's changes say.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::raft::{ConfChange, ConfChangeKind};

/// One member.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Member {
    /// Its ID.
    #[serde(serialize_with = "as_hex")]
    pub id: u64,
    /// `--name`; empty until it has published itself.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// Whether it receives the log without a vote.
    pub is_learner: bool,
}

/// An ID as etcd shows it.
pub fn as_hex<S: serde::Serializer>(id: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{id:x}"))
}

/// All of them, by ID.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// Those that belong.
    pub list: BTreeMap<u64, Member>,
    /// Those that were removed: their IDs never come back.
    pub removed: BTreeSet<u64>,
}

/// A member in JSON, as conf changes and the bucket `members` hold it.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Json {
    id: u64,
    #[serde(rename = "peerURLs")]
    peer_urls: Option<Vec<String>>,
    #[serde(rename = "isLearner")]
    is_learner: bool,
    name: String,
    #[serde(rename = "clientURLs")]
    client_urls: Option<Vec<String>>,
    #[serde(rename = "isPromote")]
    is_promote: bool,
}

/// `attributes` of a member as it publishes itself.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Attributes {
    name: String,
    #[serde(rename = "clientURLs")]
    client_urls: Option<Vec<String>>,
}

impl Json {
    /// What a change says of its member; nothing where it removes one.
    fn of(change: &ConfChange) -> Self {
        serde_json::from_slice(&change.context).unwrap_or_default()
    }
}

impl ConfChange {
    /// Whether a learner becomes a voter.
    pub fn is_promotion(&self) -> bool {
        self.kind == ConfChangeKind::AddNode && Json::of(self).is_promote
    }
}

impl Member {
    /// From the JSON of the bucket `members`.
    pub fn from_json(json: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Json>(json).ok().map(Self::from)
    }

    /// Whether it has ever been started: a member publishes its name when it joins, and
    /// `member add` leaves it empty.
    pub fn has_joined(&self) -> bool {
        !self.name.is_empty()
    }

    /// What names it on a command line: its name, or its ID where it has none.
    pub fn handle(&self) -> String {
        if self.name.is_empty() {
            format!("{:x}", self.id)
        } else {
            self.name.clone()
        }
    }

    /// For people: name and ID.
    pub fn shown(&self) -> String {
        match self.name.as_str() {
            "" => format!("{:x}, which has never joined", self.id),
            name => format!("{name} ({:x})", self.id),
        }
    }
}

impl From<Json> for Member {
    fn from(json: Json) -> Self {
        Self {
            id: json.id,
            name: json.name,
            peer_urls: json.peer_urls.unwrap_or_default(),
            client_urls: json.client_urls.unwrap_or_default(),
            is_learner: json.is_learner,
        }
    }
}

impl Members {
    /// Applies a change as etcd's cluster.go does: one that is not accepted changes nothing.
    pub fn apply(&mut self, change: &ConfChange) {
        if !self.accepts(change) {
            return;
        }
        let json = Json::of(change);
        match change.kind {
            ConfChangeKind::AddNode if json.is_promote => {
                if let Some(member) = self.list.get_mut(&change.node) {
                    member.is_learner = false;
                }
            }
            ConfChangeKind::AddNode | ConfChangeKind::AddLearner => {
                let is_learner = change.kind == ConfChangeKind::AddLearner;
                self.list.insert(
                    change.node,
                    Member {
                        id: change.node,
                        is_learner,
                        ..json.into()
                    },
                );
            }
            ConfChangeKind::RemoveNode => {
                self.list.remove(&change.node);
                self.removed.insert(change.node);
            }
            ConfChangeKind::UpdateNode => {
                if let Some(member) = self.list.get_mut(&change.node) {
                    member.peer_urls = json.peer_urls.unwrap_or_default();
                }
            }
        }
    }

    /// Whether etcd accepts a change for these members (cluster.go: `ValidateConfigurationChange`).
    /// Its limit of learners (`--max-learners`, 1 by default) is left out: the disk does not say
    /// it.
    pub fn accepts(&self, change: &ConfChange) -> bool {
        if self.removed.contains(&change.node) {
            return false;
        }
        let json = Json::of(change);
        let known = self.list.get(&change.node);
        match change.kind {
            ConfChangeKind::AddNode | ConfChangeKind::AddLearner if json.is_promote => {
                known.is_some_and(|member| member.is_learner)
            }
            ConfChangeKind::AddNode | ConfChangeKind::AddLearner => {
                known.is_none() && !self.has_url_of(&json, 0)
            }
            ConfChangeKind::RemoveNode => known.is_some(),
            ConfChangeKind::UpdateNode => known.is_some() && !self.has_url_of(&json, change.node),
        }
    }

    fn has_url_of(&self, json: &Json, but: u64) -> bool {
        let urls = json.peer_urls.as_deref().unwrap_or_default();
        let others = self.list.values().filter(|member| member.id != but);
        others
            .flat_map(|member| &member.peer_urls)
            .any(|url| urls.contains(url))
    }

    /// What a member published of itself.
    pub fn publish(&mut self, id: u64, attributes: &[u8]) {
        let Ok(attributes) = serde_json::from_slice::<Attributes>(attributes) else {
            return;
        };
        self.publish_as(
            id,
            attributes.name,
            attributes.client_urls.unwrap_or_default(),
        );
    }

    /// The same, already taken apart.
    pub fn publish_as(&mut self, id: u64, name: String, client_urls: Vec<String>) {
        if let Some(member) = self.list.get_mut(&id) {
            (member.name, member.client_urls) = (name, client_urls);
        }
    }

    /// IDs of those that vote.
    pub fn voters(&self) -> impl Iterator<Item = u64> {
        self.list
            .values()
            .filter(|member| !member.is_learner)
            .map(|member| member.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: ConfChangeKind, node: u64, context: &str) -> ConfChange {
        ConfChange {
            kind,
            node,
            context: context.into(),
        }
    }

    #[test]
    fn changes_are_applied_as_etcd_does() {
        use ConfChangeKind::{AddLearner, AddNode, RemoveNode, UpdateNode};
        let mut members = Members::default();
        members.apply(&change(
            AddNode,
            1,
            r#"{"id":1,"peerURLs":["http://a"],"name":"a"}"#,
        ));
        members.apply(&change(
            AddLearner,
            2,
            r#"{"id":2,"peerURLs":["http://b"]}"#,
        ));
        members.apply(&change(AddNode, 3, r#"{"id":3,"peerURLs":["http://a"]}"#));
        assert_eq!(members.voters().collect::<Vec<_>>(), [1]);
        members.apply(&change(
            AddNode,
            2,
            r#"{"id":2,"peerURLs":["http://b"],"isPromote":true}"#,
        ));
        members.publish(2, br#"{"name":"b","clientURLs":["http://b:2379"]}"#);
        members.apply(&change(
            UpdateNode,
            1,
            r#"{"id":1,"peerURLs":["http://c"]}"#,
        ));
        members.apply(&change(
            UpdateNode,
            1,
            r#"{"id":1,"peerURLs":["http://b"]}"#,
        ));
        assert_eq!(members.voters().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(
            (
                members.list[&2].name.as_str(),
                members.list[&1].peer_urls[0].as_str()
            ),
            ("b", "http://c")
        );
        members.apply(&change(RemoveNode, 1, ""));
        members.apply(&change(AddNode, 1, r#"{"id":1,"peerURLs":["http://d"]}"#));
        assert_eq!(members.list.keys().copied().collect::<Vec<_>>(), [2]);
    }
}
