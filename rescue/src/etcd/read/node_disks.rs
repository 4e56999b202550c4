//! The nodes of the cluster as its newest readable member lists them, and which of the disks given
//! belongs to which node.

use anyhow::Result;

use super::node_list::{ListedNode, NodeList};
use super::status::{Found, status};
use crate::base::refusal::Refusal;
use crate::guest::Guest;
use crate::node::Node;

/// A system on a disk, by what tells whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDisk {
    /// What was given.
    pub source: String,
    /// What the system calls itself.
    pub name: String,
    /// `/etc/machine-id`.
    pub machine_id: Option<String>,
}

/// The nodes of one cluster, and the disks given.
#[derive(Debug, Clone)]
pub struct ClusterNodes {
    /// Source of the member that the list is from.
    pub source: String,
    /// What that member says.
    pub list: NodeList,
    /// All systems on the disks given.
    pub disks: Vec<NodeDisk>,
}

impl NodeDisk {
    /// That of a system.
    pub fn of(guest: &Guest, node: &Node) -> Self {
        Self {
            source: guest.source.clone(),
            name: node.name(&guest.source).to_owned(),
            machine_id: node.machine_id.value.clone(),
        }
    }

    /// The node whose disk it is by its machine ID, where no other node has the same: machines
    /// cloned with it prove nothing.
    fn by_machine_id<'n>(&self, nodes: &'n [ListedNode]) -> Option<&'n ListedNode> {
        let own = self.machine_id.as_ref().filter(|id| !id.is_empty())?;
        let mut all = nodes.iter().filter(|node| node.object.machine_id == *own);
        all.next().filter(|_| all.next().is_none())
    }

    fn is_of(&self, node: &ListedNode, nodes: &[ListedNode]) -> bool {
        let named = nodes.iter().find(|one| one.object.name == self.name);
        let owner = named.or_else(|| self.by_machine_id(nodes));
        owner.is_some_and(|owner| owner.object.name == node.object.name)
    }

    fn remark(&self, nodes: &[ListedNode]) -> Option<String> {
        if nodes.iter().any(|node| node.object.name == self.name) {
            return None;
        }
        Some(match self.by_machine_id(nodes) {
            Some(node) => format!(
                "{} calls itself {}, which is no node of this cluster, but has the machine ID of \
                 {}: was its host name changed? As {0} is \
                 now, its kubelet is refused by the API server, or joins under the new name.",
                self.source, self.name, node.object.name
            ),
            None => format!(
                "{} ({}) is no node of this cluster.",
                self.name, self.source
            ),
        })
    }
}

impl ClusterNodes {
    /// Asks the newest of the members found that can be read.
    ///
    /// # Errors
    /// A [`Refusal`] where the members are of several clusters, or none can be read.
    pub fn read(found: &[Found], disks: Vec<NodeDisk>) -> Result<Self> {
        let (source, list) = newest_list(found)?;
        Ok(Self {
            source,
            list,
            disks,
        })
    }

    /// Sources of the disks of a node.
    pub fn disks_of(&self, node: &ListedNode) -> Vec<&str> {
        self.disks
            .iter()
            .filter(|disk| disk.is_of(node, &self.list.nodes))
            .map(|disk| disk.source.as_str())
            .collect()
    }

    /// What is odd about the disks, in sentences.
    pub fn remarks(&self) -> Vec<String> {
        self.disks
            .iter()
            .filter_map(|disk| disk.remark(&self.list.nodes))
            .collect()
    }
}

/// The list, and the source of the member that it is from.
fn newest_list(found: &[Found]) -> Result<(String, NodeList)> {
    let cluster = status(found, false);
    let newest = cluster.newest.as_ref().map_or(0, |newest| newest.member);
    let cluster_of = |index: usize| {
        let member = cluster.members.get(index)?;
        member.identity.map(|identity| identity.cluster)
    };
    let is_other =
        |index: usize| cluster_of(index).is_some() && cluster_of(index) != cluster_of(newest);
    if (0..found.len()).any(is_other) {
        return Err(Refusal::new(
            "the members on these disks are of different clusters",
            "there is not one list of nodes",
            "name the disks of one cluster; rescue etcd status says which belong together",
        )
        .into());
    }
    // A newer member with a damaged database knows less than an older one without.
    let mut order: Vec<usize> = (0..found.len()).collect();
    order.sort_by_key(|index| *index != newest);
    let mut unreadable = Vec::new();
    for index in order {
        let (Some(member), Some(found)) = (cluster.members.get(index), found.get(index)) else {
            continue;
        };
        match NodeList::read(&found.guest, &member.data) {
            Ok(mut list) => {
                let doubt = |why: &String| format!("Not from the newest member: {why}.");
                list.doubts.extend(unreadable.iter().map(doubt));
                return Ok((found.source.clone(), list));
            }
            Err(error) => unreadable.push(format!("{}: {error}", found.source)),
        }
    }
    Err(Refusal::new(
        unreadable.join("; "),
        "no member's keys can be read",
        "take the disk of another member; rescue etcd status says more",
    )
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::read::objects::NodeObject;

    fn listed(name: &str, machine_id: &str) -> ListedNode {
        ListedNode {
            object: NodeObject {
                name: name.to_owned(),
                machine_id: machine_id.to_owned(),
                ..NodeObject::default()
            },
            last_heartbeat: None,
        }
    }

    fn cluster(nodes: Vec<ListedNode>, name: &str, machine_id: &str) -> ClusterNodes {
        ClusterNodes {
            source: "m1.img".to_owned(),
            list: NodeList {
                nodes,
                ..NodeList::default()
            },
            disks: vec![NodeDisk {
                source: "a.img".to_owned(),
                name: name.to_owned(),
                machine_id: Some(machine_id.to_owned()),
            }],
        }
    }

    #[test]
    fn a_disk_belongs_to_the_node_of_its_name_and_else_of_its_machine_id() {
        let nodes = vec![listed("w1", "aa"), listed("w2", "bb")];
        let by_name = cluster(nodes.clone(), "w2", "aa");
        assert_eq!(by_name.disks_of(&nodes[1]), ["a.img"]);
        assert!(by_name.disks_of(&nodes[0]).is_empty() && by_name.remarks().is_empty());
        let renamed = cluster(nodes.clone(), "new", "aa");
        assert_eq!(renamed.disks_of(&nodes[0]), ["a.img"]);
        assert!(renamed.remarks()[0].contains("machine ID of w1"));
    }

    #[test]
    fn a_machine_id_that_two_nodes_have_proves_nothing() {
        let nodes = vec![listed("w1", "aa"), listed("w2", "aa")];
        let cloned = cluster(nodes.clone(), "new", "aa");
        assert!(nodes.iter().all(|node| cloned.disks_of(node).is_empty()));
        assert_eq!(
            cloned.remarks(),
            ["new (a.img) is no node of this cluster."]
        );
    }
}
