//! Who a rebuilt cluster consists of: names and peer URLs from the nodes' own manifests and
//! services, else from what the members' disks say of themselves.

use anyhow::Result;

use crate::base::refusal::Refusal;
use crate::etcd::format::members::{Member, Members};
use crate::etcd::read::launch::{By, Launch};
use crate::etcd::read::member::MemberData;
use crate::etcd::read::status::Found;
use crate::etcd::write::identity::{cluster_id, member_id};

/// One member of a new cluster, as etcd's flags name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `--name`.
    pub name: String,
    /// `--initial-advertise-peer-urls`.
    pub peer_urls: Vec<String>,
}

impl Target {
    /// Who the member on a disk is.
    ///
    /// # Errors
    /// A [`Refusal`] where nothing says it.
    pub fn of(found: &Found, data: &MemberData) -> Result<Self> {
        if let Some(Launch {
            by: By::Embedded(embedding),
            ..
        }) = &found.launch
        {
            return Err(Refusal::new(
                format!(
                    "{} on {} runs etcd inside itself",
                    embedding.name, found.source
                ),
                "it keeps its own record of the cluster's members, which a new etcd cluster would \
                 contradict",
                embedding.tool,
            )
            .into());
        }
        let started = found.launch.as_ref().and_then(|launch| {
            Some(Self {
                name: launch.option("--name")?.to_owned(),
                peer_urls: launch.peer_urls(),
            })
        });
        if let Some(target) = started.filter(Self::is_whole) {
            return Ok(target);
        }
        let own = data
            .log
            .identity
            .and_then(|identity| data.membership().0.list.get(&identity.member).cloned());
        let known = own.map(|member| Self {
            name: member.name,
            peer_urls: member.peer_urls,
        });
        known.filter(Self::is_whole).ok_or_else(|| {
            Refusal::new(
                format!(
                    "neither a manifest nor the log on {} says the member's name and peer URL",
                    found.source
                ),
                "a new member must have the name and the URL that etcd is started with",
                "name it as etcd's --initial-cluster does: --member NAME=URL, once for each disk, \
                 in their order",
            )
            .into()
        })
    }

    /// From `NAME=URL[,URL]`.
    ///
    /// # Errors
    /// What is missing, as a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, urls) = text.split_once('=').unwrap_or_default();
        let peer_urls: Vec<String> = urls.split(',').map(str::to_owned).collect();
        let target = Self {
            name: name.to_owned(),
            peer_urls,
        };
        let is_url = |url: &String| {
            let rest = url
                .strip_prefix("https://")
                .or_else(|| url.strip_prefix("http://"));
            rest.is_some_and(|rest| rest.contains(':') && !rest.contains(['/', ' ', '"']))
        };
        match target.is_whole() && target.peer_urls.iter().all(is_url) {
            true => Ok(target),
            false => Err(format!(
                "{text} is no NAME=URL such as master01=https://10.0.0.1:2380"
            )),
        }
    }

    fn is_whole(&self) -> bool {
        !self.name.is_empty()
            && !self.peer_urls.is_empty()
            && self.peer_urls.iter().all(|url| !url.is_empty())
    }
}

/// A cluster that does not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCluster {
    /// Its ID.
    pub id: u64,
    /// Its members, all of them voters.
    pub members: Members,
    /// The IDs in the order of the targets.
    pub order: Vec<u64>,
}

impl NewCluster {
    /// IDs as etcd works them out, from the peer URLs and the token. With a token of its own no
    /// stale copy of the old cluster can ever talk to it.
    ///
    /// # Errors
    /// A [`Refusal`] where two are one.
    pub fn new(targets: &[Target], token: &str) -> Result<Self> {
        let mut members = Members::default();
        let mut order = Vec::new();
        for Target { name, peer_urls } in targets {
            let id = member_id(peer_urls, token);
            let twin = members.list.values().find(|other| {
                other.name == *name || other.peer_urls.iter().any(|url| peer_urls.contains(url))
            });
            if let Some(twin) = twin {
                return Err(Refusal::new(
                    format!(
                        "two of the members are {} with {}",
                        twin.name,
                        twin.peer_urls.join(",")
                    ),
                    "a cluster has each name and each peer URL once",
                    "name each machine's disk once; where manifests are wrong, say who is who with \
                     --member NAME=URL",
                )
                .into());
            }
            members.list.insert(
                id,
                Member {
                    id,
                    name: name.clone(),
                    peer_urls: peer_urls.clone(),
                    ..Member::default()
                },
            );
            order.push(id);
        }
        Ok(Self {
            id: cluster_id(members.voters()),
            members,
            order,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_told_apart() {
        let target = |text| Target::parse(text).unwrap();
        let targets = [
            target("a=https://10.0.0.1:2380"),
            target("b=https://10.0.0.2:2380,https://b:2380"),
        ];
        let cluster = NewCluster::new(&targets, "token").unwrap();
        assert_eq!(cluster.order.len(), 2);
        assert_eq!(cluster.members.list[&cluster.order[1]].peer_urls.len(), 2);
        assert_ne!(cluster.id, NewCluster::new(&targets, "other").unwrap().id);
        for other in ["a=https://10.0.0.3:2380", "c=https://10.0.0.1:2380"] {
            assert!(NewCluster::new(&[targets[0].clone(), target(other)], "token").is_err());
        }
        for wrong in [
            "a",
            "a=",
            "=https://x:1",
            "a=ftp://x:1",
            "a=https://x",
            "a=https://x:1,",
        ] {
            assert!(Target::parse(wrong).is_err(), "{wrong}");
        }
    }
}
