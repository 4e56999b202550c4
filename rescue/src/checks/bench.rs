//! A bench for checks: a guest in memory is looked at, mended, and looked at again.

use std::rc::Rc;

use crate::base::ui::Silent;
use crate::change::Planned;
use crate::finding::{Check, Context, Facts, Finding, Remedy};
use crate::guest::Guest;
use crate::node::Node;
use crate::settings::Settings;
use crate::tree::MemoryTree;

/// One check and what the user asked for.
pub struct Bench {
    check: Check,
    settings: Settings,
}

impl Bench {
    pub fn new(check: Check) -> Self {
        let settings = Settings::default();
        Self { check, settings }
    }

    pub fn with(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }

    /// What the check says of a guest. Every finding names a mode of the check and is no worse than
    /// it.
    pub fn found_in(&self, guest: &Guest) -> Vec<Finding> {
        self.look(guest, &|context| {
            if !self.check.is_for(context) {
                return Vec::new();
            }
            let found = (self.check.run)(context).expect("the check runs");
            for finding in &found {
                let is_declared = self.check.modes.contains(&finding.mode);
                assert!(is_declared, "{} is not declared", finding.mode.id);
                assert!(finding.severity <= finding.mode.severity, "{finding:?}");
            }
            found
        })
    }

    /// What the check says of a tree.
    pub fn found(&self, tree: MemoryTree) -> Vec<Finding> {
        self.found_in(&tree.into_guest())
    }

    /// The identifiers of the modes that are found, in order.
    pub fn modes(&self, tree: MemoryTree) -> Vec<&'static str> {
        let found = self.found(tree);
        found.iter().map(|finding| finding.mode.id).collect()
    }

    /// Asserts that the check says nothing.
    pub fn silent(&self, tree: MemoryTree) {
        let found = self.found(tree);
        assert!(found.is_empty(), "{found:#?}");
    }

    /// The guest after one remedy.
    pub fn after(&self, guest: &Guest, remedy: &dyn Remedy) -> Guest {
        let prepared = self.look(guest, &|context| {
            remedy.prepare(context).expect("the remedy can be prepared")
        });
        let mut planned = Planned::over(guest.tree(), self.settings.now.unix_timestamp());
        for action in &prepared.free {
            planned.free(action).expect("it can be freed");
        }
        for change in &prepared.changes {
            planned.apply(change).expect("it can be changed");
        }
        guest.with_tree(Rc::new(planned))
    }

    /// The guest after all remedies of all findings. Asserts that there are some, and that
    /// afterwards nothing is found that counts.
    pub fn mended(&self, tree: MemoryTree) -> Guest {
        let mut guest = tree.into_guest();
        let found = self.found_in(&guest);
        assert!(!found.is_empty(), "nothing was found");
        for finding in &found {
            assert!(!finding.remedies.is_empty(), "no remedy: {finding:#?}");
            for remedy in &finding.remedies {
                guest = self.after(&guest, remedy.as_ref());
            }
        }
        let left = self.found_in(&guest);
        assert!(!left.iter().any(crate::finding::counts), "{left:#?}");
        guest
    }

    fn look<T>(&self, guest: &Guest, see: &dyn Fn(&Context<'_>) -> T) -> T {
        let node = Node::read(guest);
        see(&Context {
            guest,
            node: &node,
            settings: &self.settings,
            peers: &[],
            ui: &Silent,
            facts: &Facts::default(),
        })
    }
}

/// A control plane as kubeadm's packages leave it: the kubelet's unit, its drop-in, its config, and
/// one static pod.
pub fn control_plane() -> MemoryTree {
    const UNIT: &str = "/usr/lib/systemd/system/kubelet.service";
    MemoryTree::new()
        .file(UNIT, "[Service]\nExecStart=/usr/bin/kubelet\n")
        .file(
            "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf",
            "[Service]\n\
             Environment=\"KUBELET_KUBECONFIG_ARGS=--kubeconfig=/etc/kubernetes/kubelet.conf\"\n\
             Environment=\"KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml\"\n\
             EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env\n\
             EnvironmentFile=-/etc/default/kubelet\n\
             ExecStart=\n\
             ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS \
             $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS\n",
        )
        .link(
            "/etc/systemd/system/multi-user.target.wants/kubelet.service",
            UNIT,
        )
        .file("/usr/bin/kubelet", "ELF")
        .file(
            "/var/lib/kubelet/config.yaml",
            "kind: KubeletConfiguration\nstaticPodPath: /etc/kubernetes/manifests\n",
        )
        .file(
            "/etc/kubernetes/manifests/kube-apiserver.yaml",
            "kind: Pod\nmetadata: {name: kube-apiserver}\n\
             spec: {containers: [{command: [kube-apiserver]}]}\n",
        )
        .file("/etc/kubernetes/kubelet.conf", "kind: Config\n")
}

/// A worker as kubeadm's packages leave it.
pub fn worker() -> MemoryTree {
    control_plane().without("/etc/kubernetes/manifests/kube-apiserver.yaml")
}
