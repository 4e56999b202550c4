//! kubeadm's leaves as data: where each is, who signs it, what it is for. Source: kubeadm's
//! phases/certs/certlist.go, phases/kubeconfig and phases/controlplane/manifests.go, which did not
//! change in these points from 1.11 to 1.33.

use crate::base::severity::Severity;

/// One of kubeadm's three authorities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Authority {
    /// `ca`: the cluster's own.
    Cluster,
    /// `front-proxy-ca`: for aggregated API servers.
    FrontProxy,
    /// `etcd/ca`: etcd's own.
    Etcd,
}

impl Authority {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cluster, Self::FrontProxy, Self::Etcd];

    /// As `kubeadm certs check-expiration` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cluster => "ca",
            Self::FrontProxy => "front-proxy-ca",
            Self::Etcd => "etcd-ca",
        }
    }

    /// Path below the certificate directory, without `.crt`.
    pub fn base(self) -> &'static str {
        match self {
            Self::Cluster => "ca",
            Self::FrontProxy => "front-proxy-ca",
            Self::Etcd => "etcd/ca",
        }
    }
}

/// An extended key usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// serverAuth.
    Server,
    /// clientAuth.
    Client,
}

impl Usage {
    /// Its object identifier.
    pub fn oid(self) -> &'static str {
        match self {
            Self::Server => "1.3.6.1.5.5.7.3.1",
            Self::Client => "1.3.6.1.5.5.7.3.2",
        }
    }

    /// As openssl's configuration and RFC 5280 call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "serverAuth",
            Self::Client => "clientAuth",
        }
    }

    /// The name of an object identifier, or itself where it is neither of these.
    pub fn name_of(oid: &str) -> &str {
        match [Self::Server, Self::Client]
            .into_iter()
            .find(|usage| usage.oid() == oid)
        {
            Some(usage) => usage.name(),
            None => oid,
        }
    }
}

/// Where a static pod names a certificate and its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags {
    /// `metadata.name` of the pod.
    pub pod: &'static str,
    /// Flag with the certificate's path.
    pub certificate: &'static str,
    /// Flag with the key's path.
    pub key: &'static str,
}

/// One leaf that is a pair of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// As `kubeadm certs check-expiration` calls it.
    pub name: &'static str,
    /// Path below the certificate directory, without `.crt` and `.key`.
    pub base: &'static str,
    /// Who signs it.
    pub authority: Authority,
    /// The common name that its peers insist on, or `None` where it is free (etcd's carry the
    /// node's name).
    pub common_name: Option<&'static str>,
    /// Extended key usages.
    pub usages: &'static [Usage],
    /// Where the manifests name it; they win over `base`.
    pub flags: Option<Flags>,
    /// What an unusable one means for the node.
    pub severity: Severity,
    /// The same in words, after "without it".
    pub consequence: &'static str,
}

/// The leaves that are pairs of files.
pub const LEAVES: [Profile; 7] = [
    Profile {
        name: "apiserver",
        base: "apiserver",
        authority: Authority::Cluster,
        common_name: Some("kube-apiserver"),
        usages: &[Usage::Server],
        flags: Some(Flags {
            pod: "kube-apiserver",
            certificate: "--tls-cert-file",
            key: "--tls-private-key-file",
        }),
        severity: Severity::StopsBoot,
        consequence: "nothing trusts this node's API server, not even its own kubelet",
    },
    Profile {
        name: "apiserver-kubelet-client",
        base: "apiserver-kubelet-client",
        authority: Authority::Cluster,
        common_name: Some("kube-apiserver-kubelet-client"),
        usages: &[Usage::Client],
        flags: Some(Flags {
            pod: "kube-apiserver",
            certificate: "--kubelet-client-certificate",
            key: "--kubelet-client-key",
        }),
        severity: Severity::WillBreak,
        consequence: "logs, exec and port-forward fail",
    },
    Profile {
        name: "front-proxy-client",
        base: "front-proxy-client",
        authority: Authority::FrontProxy,
        common_name: Some("front-proxy-client"),
        usages: &[Usage::Client],
        flags: Some(Flags {
            pod: "kube-apiserver",
            certificate: "--proxy-client-cert-file",
            key: "--proxy-client-key-file",
        }),
        severity: Severity::WillBreak,
        consequence: "aggregated API servers (metrics-server) are not reached",
    },
    Profile {
        name: "apiserver-etcd-client",
        base: "apiserver-etcd-client",
        authority: Authority::Etcd,
        common_name: None,
        usages: &[Usage::Client],
        flags: Some(Flags {
            pod: "kube-apiserver",
            certificate: "--etcd-certfile",
            key: "--etcd-keyfile",
        }),
        severity: Severity::StopsBoot,
        consequence: "the API server cannot reach etcd and exits",
    },
    Profile {
        name: "etcd-server",
        base: "etcd/server",
        authority: Authority::Etcd,
        common_name: None,
        usages: BOTH,
        flags: Some(Flags {
            pod: "etcd",
            certificate: "--cert-file",
            key: "--key-file",
        }),
        severity: Severity::StopsBoot,
        consequence: "the API server does not trust etcd and exits",
    },
    Profile {
        name: "etcd-peer",
        base: "etcd/peer",
        authority: Authority::Etcd,
        common_name: None,
        usages: BOTH,
        flags: Some(Flags {
            pod: "etcd",
            certificate: "--peer-cert-file",
            key: "--peer-key-file",
        }),
        severity: Severity::StopsBoot,
        consequence: "etcd members do not accept each other",
    },
    Profile {
        name: "etcd-healthcheck-client",
        base: "etcd/healthcheck-client",
        authority: Authority::Etcd,
        common_name: None,
        usages: &[Usage::Client],
        flags: None,
        severity: Severity::WillBreak,
        consequence: "etcd's liveness probe (kubeadm up to 1.16) and hand-made etcdctl calls fail",
    },
];

/// One kubeconfig with a client certificate in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigProfile {
    /// As `kubeadm certs check-expiration` calls it: its file name.
    pub name: &'static str,
    /// The static pod whose `--kubeconfig` names the file, if any does.
    pub pod: Option<&'static str>,
    /// What an unusable one means for the node.
    pub severity: Severity,
    /// The same in words, after "without it".
    pub consequence: &'static str,
}

/// The kubeconfigs that carry a client certificate, kubelet.conf excepted (see [`super::kubelet`]).
pub const CONFIGS: [ConfigProfile; 4] = [
    ConfigProfile {
        name: "admin.conf",
        pod: None,
        severity: Severity::WillBreak,
        consequence: "kubectl and kubeadm on this node are rejected",
    },
    ConfigProfile {
        name: "super-admin.conf",
        pod: None,
        severity: Severity::WillBreak,
        consequence: "the emergency administrator is rejected",
    },
    ConfigProfile {
        name: "controller-manager.conf",
        pod: Some("kube-controller-manager"),
        severity: Severity::WillBreak,
        consequence: "no controller of this node's control plane works",
    },
    ConfigProfile {
        name: "scheduler.conf",
        pod: Some("kube-scheduler"),
        severity: Severity::WillBreak,
        consequence: "this node's scheduler places no pods",
    },
];

/// The only extended key usage of a kubeconfig's certificate.
pub const CLIENT: &[Usage] = &[Usage::Client];

/// Of a certificate that its bearer shows as a server and as a client.
pub const BOTH: &[Usage] = &[Usage::Server, Usage::Client];
