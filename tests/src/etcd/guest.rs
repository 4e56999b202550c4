//! What kubeadm leaves of etcd on a control plane: the few files of a guest that a member's data
//! folder belongs to.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Cluster, Member};

/// Where the guest has its member, as kubeadm's manifest says it.
pub const DATA_DIR: &str = "var/lib/etcd";

/// Makes the guest of a member of this name in a folder; `flags` are those that etcd's manifest has
/// beside name and data folder. The data folder is left to the caller.
pub fn make(root: &Path, name: &str, flags: &[String]) -> Result<()> {
    for folder in ["bin", "var/lib", "etc/kubernetes/manifests"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join("etc/hostname"), format!("{name}\n"))?;
    fs::write(
        root.join("etc/machine-id"),
        format!("{:0>32}\n", hexadecimal(name)),
    )?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n")?;
    let own = [
        "etcd".to_owned(),
        format!("--data-dir=/{DATA_DIR}"),
        format!("--name={name}"),
    ];
    let lines: String = own
        .iter()
        .chain(flags)
        .map(|flag| format!("    - {flag}\n"))
        .collect();
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: etcd, namespace: kube-system}}\nspec:\n  \
         containers:\n  - name: etcd\n    \
         image: k8s.gcr.io/etcd:3.4.13-0\n    command:\n{lines}"
    );
    Ok(fs::write(
        root.join("etc/kubernetes/manifests/etcd.yaml"),
        pod,
    )?)
}

fn hexadecimal(name: &str) -> String {
    name.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// The flags that say where a member is reached.
pub fn addresses(member: &Member) -> Vec<String> {
    vec![
        format!("--initial-advertise-peer-urls={}", member.peer_url()),
        format!("--advertise-client-urls={}", member.client_url()),
    ]
}

/// The guest that holds a data folder.
pub fn root_of(data_dir: &Path) -> &Path {
    data_dir
        .ancestors()
        .nth(Path::new(DATA_DIR).iter().count())
        .unwrap_or(data_dir)
}

/// Makes a guest around the data folder of each member of a cluster that [`Cluster::prepare`] was
/// given [`place`] for. `flags`: further ones.
pub fn make_all(cluster: &Cluster, flags: &[String]) -> Result<Vec<PathBuf>> {
    let make_one = |member: &Member| {
        let root = root_of(&member.data_dir);
        make(root, &member.name, &[&addresses(member), flags].concat())?;
        Ok(root.to_owned())
    };
    cluster.members.iter().map(make_one).collect()
}

/// The data folder of a member whose guest is a folder of its name.
pub fn place(folder: &Path, name: &str) -> PathBuf {
    folder.join(name).join(DATA_DIR)
}
