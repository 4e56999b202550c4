//! Whole nodes on trees in memory.

use super::*;
use crate::tree::MemoryTree;

const APISERVER: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: kube-apiserver\nspec:\n  \
    containers:\n  - command:\n    - kube-apiserver\n    \
    - --client-ca-file=/etc/kubernetes/ssl/ca.crt\n    \
    image: registry:5000/kube-apiserver:v1.20.2\n";

fn control_plane() -> MemoryTree {
    MemoryTree::new()
        .file(
            "/usr/lib/os-release",
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n",
        )
        .link("/etc/os-release", "../usr/lib/os-release")
        .file("/etc/hostname", "Master-1\n")
        .file("/etc/machine-id", "48ac18b487514229975ebcbf998b9997\n")
        .file("/etc/kubernetes/manifests/kube-apiserver.yaml", APISERVER)
        .file(
            "/etc/kubernetes/manifests/.hidden.yaml",
            APISERVER.replace("ssl", "hidden"),
        )
        .file(
            "/usr/lib/systemd/system/kubelet.service",
            "[Service]\nEnvironment=A=--bootstrap-kubeconfig=/boot.conf\n\
             ExecStart=/usr/bin/kubelet $A --kubeconfig /k.conf \\\n \
             --config=/c.yaml \
             --container-runtime-endpoint=unix:///run/containerd/containerd.sock\n",
        )
        .file("/c.yaml", "staticPodPath: /etc/kubernetes/manifests\n")
}

fn read(tree: MemoryTree) -> Node {
    Node::read(&tree.into_guest())
}

#[test]
fn a_control_plane() {
    let node = read(control_plane());
    assert_eq!(
        node.os.value.as_deref(),
        Some("Debian GNU/Linux 12 (bookworm)")
    );
    assert_eq!(
        node.machine_id.value.as_deref(),
        Some("48ac18b487514229975ebcbf998b9997")
    );
    assert_eq!(node.role.value, Some(Role::ControlPlane));
    assert_eq!(
        node.kubelet_version
            .value
            .map(|version| version.to_string())
            .as_deref(),
        Some("1.20.2")
    );
    assert_eq!(node.node_name.value.as_deref(), Some("master-1"));
    assert_eq!(node.container_runtime.value.as_deref(), Some("containerd"));
    assert_eq!(
        node.certificate_dir,
        Fact::known(
            GuestPath::new("/etc/kubernetes/ssl"),
            "/etc/kubernetes/manifests/kube-apiserver.yaml --client-ca-file"
        )
    );
    assert_eq!(
        node.kubelet.bootstrap_kubeconfig,
        Fact::known(
            GuestPath::new("/boot.conf"),
            "/usr/lib/systemd/system/kubelet.service:2 --bootstrap-kubeconfig"
        )
    );
    assert_eq!(
        node.kubelet.kubeconfig.source,
        "/usr/lib/systemd/system/kubelet.service:3 --kubeconfig"
    );
    assert_eq!(node.static_pods.len(), 1);
}

#[test]
fn of_two_manifests_the_last_counts_unless_it_is_a_copy() {
    let copy = APISERVER.replace("/ssl/", "/old/");
    for (name, folder) in [
        ("kube-apiserver2.yaml", "/etc/kubernetes/old"),
        ("kube-apiserver.yaml.bak", "/etc/kubernetes/ssl"),
        ("kube-apiserver.yaml_20230101", "/etc/kubernetes/ssl"),
        ("kube-apiserver.yaml~", "/etc/kubernetes/ssl"),
        ("kube-apiserver-old.yaml", "/etc/kubernetes/ssl"),
    ] {
        let path = format!("/etc/kubernetes/manifests/{name}");
        let node = read(control_plane().file(path, &copy));
        let found = node.certificate_dir.value;
        assert_eq!(found, Some(GuestPath::new(folder)), "{name}");
        assert_eq!(node.static_pods.len(), 1, "{name}");
    }
}

#[test]
fn versions_by_package_and_binary() {
    let dpkg = "Package: kubeadm\nStatus: install ok installed\nVersion: 1.9.0-00\n\n\
        Package: kubelet\nStatus: hold ok installed\nVersion: 1.18.20-00\n";
    let node = read(control_plane().file("/var/lib/dpkg/status", dpkg));
    assert_eq!(
        node.kubelet_version,
        Fact::known(
            Version {
                major: 1,
                minor: 18,
                patch: 20
            },
            "/var/lib/dpkg/status"
        )
    );

    let header = |version: &str| {
        [
            b"C\0kubelet\0",
            version.as_bytes(),
            b"\x000\0Container cluster",
        ]
        .concat()
    };
    let database = [
        vec![7; (1 << 20) - 12],
        header("1.9.9"),
        vec![1; 5000],
        header("1.22.17"),
        header("1.22.1"),
    ]
    .concat();
    let node = read(control_plane().file("/var/lib/rpm/Packages", database));
    assert_eq!(
        node.kubelet_version.value,
        Some(Version {
            major: 1,
            minor: 22,
            patch: 17
        })
    );

    let binary = [
        vec![0; (1 << 20) - 3],
        b"v1.18.6\0\0v1.99\0xv1.7.7\0 v1.8.8x".to_vec(),
    ]
    .concat();
    let node = read(control_plane().file("/usr/bin/kubelet", binary));
    assert_eq!(
        node.kubelet_version.value,
        Some(Version {
            major: 1,
            minor: 18,
            patch: 6
        })
    );
    assert!(node.kubelet_version.source.contains("/usr/bin/kubelet"));
}

#[test]
fn other_roles() {
    let worker = MemoryTree::new().file("/etc/kubernetes/kubelet.conf", "x");
    assert_eq!(read(worker).role.value, Some(Role::Worker));
    let node = read(MemoryTree::new().dir("/var/lib/rancher/k3s/server"));
    assert_eq!(node.role.value, Some(Role::OtherDistribution));
    assert!(
        node.distribution
            .value
            .expect("known")
            .starts_with("k3s: it renews")
    );
    assert_eq!(
        read(MemoryTree::new()).role.value,
        Some(Role::NotKubernetes)
    );
    let damaged = control_plane().file("/etc/kubernetes/manifests/kube-apiserver.yaml", "\0\0");
    assert_eq!(read(damaged).role.value, Some(Role::ControlPlane));
    let rancher = control_plane().dir("/var/lib/rancher/k3s/agent");
    assert_eq!(read(rancher).role.value, Some(Role::ControlPlane));
}
