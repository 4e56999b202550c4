//! Whole units on trees in memory.

use super::*;
use crate::tree::MemoryTree;

const FRAGMENT: &str =
    "[Unit]\nDescription=kubelet\n[Service]\nExecStart=/usr/bin/kubelet\nRestart=always\n";
const KUBEADM: &str = r#"# Note: This dropin only works with kubeadm and kubelet v1.11+
[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
"#;

fn deb() -> MemoryTree {
    MemoryTree::new()
        .file("/usr/lib/systemd/system/kubelet.service", FRAGMENT)
        .file(
            "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf",
            KUBEADM,
        )
        .file(
            "/var/lib/kubelet/kubeadm-flags.env",
            "KUBELET_KUBEADM_ARGS=\"--a=1 --b='2 3'\"\n",
        )
}

fn load(tree: MemoryTree) -> Unit {
    Unit::load(&tree.into_guest(), "kubelet.service").expect("there is a unit")
}

#[test]
fn kubeadms_own_layout() {
    let unit = load(deb());
    assert_eq!(
        unit.argv(),
        [
            "/usr/bin/kubelet",
            "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf",
            "--kubeconfig=/etc/kubernetes/kubelet.conf",
            "--config=/var/lib/kubelet/config.yaml",
            "--a=1",
            "--b=2 3",
        ]
    );
    let variable = unit.variable("KUBELET_KUBECONFIG_ARGS").expect("set");
    assert_eq!(
        variable.origin.to_string(),
        "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf:3"
    );
    assert_eq!(variable.via, Via::Environment);
    assert_eq!(
        unit.variable("KUBELET_KUBEADM_ARGS").expect("set").via,
        Via::EnvironmentFile
    );
    assert!(
        unit.refusals.is_empty() && unit.uncertain.is_empty(),
        "{unit:?}"
    );
}

#[test]
fn an_environment_file_beats_a_later_drop_in() {
    let unit = load(
        deb()
            .file(
                "/etc/default/kubelet",
                "KUBELET_KUBECONFIG_ARGS=--kubeconfig=/x\n",
            )
            .file(
                "/etc/systemd/system/kubelet.service.d/90-rescue.conf",
                "[Service]\nEnvironment=KUBELET_KUBECONFIG_ARGS=--no\n",
            ),
    );
    assert_eq!(unit.argv()[1], "--kubeconfig=/x");
}

#[test]
fn resets_and_refusals() {
    let two = load(deb().file(
        "/etc/systemd/system/kubelet.service.d/20-x.conf",
        "[Service]\nExecStart=/bin/b\n",
    ));
    assert_eq!(two.refusals.len(), 1, "{:?}", two.refusals);
    let none = load(deb().file(
        "/etc/systemd/system/kubelet.service.d/20-x.conf",
        "[Service]\nExecStart=\n",
    ));
    assert_eq!(none.refusals, ["the unit has no ExecStart="]);
    assert!(none.argv().is_empty());
    let reset = load(deb().file(
        "/etc/systemd/system/kubelet.service.d/20-x.conf",
        "[Service]\nEnvironment=\nEnvironmentFile=\n",
    ));
    assert_eq!(reset.argv(), ["/usr/bin/kubelet"]);
    let missing = load(deb().file(
        "/etc/systemd/system/kubelet.service.d/20-x.conf",
        "[Service]\nEnvironmentFile=/gone\n",
    ));
    assert!(missing.refusals[0].contains("/gone"));
    let unset = load(deb().file(
        "/etc/systemd/system/kubelet.service.d/20-x.conf",
        "[Service]\nUnsetEnvironment=KUBELET_KUBEADM_ARGS\n",
    ));
    assert_eq!(unset.argv().len(), 4);
}

#[test]
fn a_masked_unit_and_no_unit() {
    assert!(load(deb().link("/etc/systemd/system/kubelet.service", "/dev/null")).masked);
    assert!(Unit::load(&MemoryTree::new().into_guest(), "kubelet.service").is_none());
}

/// Bytes from a crafted disk must never make the loader panic; every prefix and many mutations of
/// real files are tried.
#[test]
fn no_input_makes_it_panic() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 33).unwrap_or(0)
    };
    let nasty = b"\\\"'$%{}[]=;#\n\r\0 \t\xff\xc3x-@:+!u0";
    for round in 0..3000 {
        let mut bytes = KUBEADM.as_bytes().to_vec();
        bytes.truncate(random() % (bytes.len() + 1));
        for _ in 0..round % 20 {
            if !bytes.is_empty() {
                let at = random() % bytes.len();
                bytes[at] = nasty[random() % nasty.len()];
            }
        }
        let unit = load(
            deb()
                .file("/etc/systemd/system/kubelet.service.d/20-x.conf", &bytes)
                .file("/etc/default/kubelet", &bytes),
        );
        let _ = unit.argv();
    }
}
