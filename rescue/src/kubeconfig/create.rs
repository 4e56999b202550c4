//! A kubeconfig written from nothing, byte for byte as kubeadm writes it (client-go's
//! clientcmd.Write: keys sorted, block style).

use anyhow::{Result, bail};
use base64::Engine as _;
use serde_json::Value;

use crate::base::yaml;
use crate::guest::GuestPath;

/// What the user presents.
#[derive(Clone, Copy)]
pub enum Credentials<'a> {
    /// Certificate and key inline, PEM.
    Inline {
        /// The certificate.
        certificate: &'a [u8],
        /// Its key.
        key: &'a [u8],
    },
    /// One file with both, as the kubelet keeps it.
    File(&'a GuestPath),
}

impl std::fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline { .. } => f.write_str("Inline"),
            Self::File(path) => write!(f, "File({path})"),
        }
    }
}

/// The parts of a kubeconfig with one cluster, one user and one context.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// Name of the cluster entry: kubeadm's `kubernetes`, the kubelet's `default-cluster`.
    pub cluster: &'a str,
    /// `https://host:port`.
    pub server: &'a str,
    /// CA certificates, PEM.
    pub authority: &'a [u8],
    /// Name of the context.
    pub context: &'a str,
    /// Name of the user entry.
    pub user: &'a str,
    /// What the user presents.
    pub credentials: Credentials<'a>,
}

/// The file's text.
///
/// # Errors
/// Where a name is not plain text: it would need quotes, and no cluster's own names do.
pub fn create(parts: Parts<'_>) -> Result<String> {
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let credentials = match parts.credentials {
        Credentials::Inline { certificate, key } => {
            format!(
                "    client-certificate-data: {}\n    client-key-data: {}\n",
                base64(certificate),
                base64(key)
            )
        }
        Credentials::File(path) => {
            format!("    client-certificate: {path}\n    client-key: {path}\n")
        }
    };
    let text = format!(
        "apiVersion: v1\n\
         clusters:\n\
         - cluster:\n    certificate-authority-data: {authority}\n    server: {server}\n  \
         name: {cluster}\n\
         contexts:\n\
         - context:\n    cluster: {cluster}\n    user: {user}\n  name: {context}\n\
         current-context: {context}\n\
         kind: Config\n\
         preferences: {{}}\n\
         users:\n\
         - name: {user}\n  user:\n{credentials}",
        authority = base64(parts.authority),
        server = parts.server,
        cluster = parts.cluster,
        user = parts.user,
        context = parts.context,
    );
    prove(&text, &parts)?;
    Ok(text)
}

/// Names come from a disk: what YAML would read otherwise than meant is refused.
fn prove(text: &str, parts: &Parts<'_>) -> Result<()> {
    let read = yaml::parse(text.as_bytes())?;
    let says = |pointer: &str| read.pointer(pointer).and_then(Value::as_str);
    let expected = [
        ("/clusters/0/cluster/server", parts.server),
        ("/clusters/0/name", parts.cluster),
        ("/contexts/0/context/cluster", parts.cluster),
        ("/contexts/0/context/user", parts.user),
        ("/contexts/0/name", parts.context),
        ("/current-context", parts.context),
        ("/users/0/name", parts.user),
    ];
    for (pointer, meant) in expected {
        if says(pointer) != Some(meant) {
            bail!("{meant:?} cannot stand in a kubeconfig as it is");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts<'a>(server: &'a str, credentials: Credentials<'a>) -> Parts<'a> {
        let (cluster, context, user) = (
            "kubernetes",
            "system:kube-scheduler@kubernetes",
            "system:kube-scheduler",
        );
        Parts {
            cluster,
            server,
            authority: b"CA\n",
            context,
            user,
            credentials,
        }
    }

    /// The words are those of `kubeadm init phase kubeconfig scheduler` 1.20.2, with other data.
    #[test]
    fn writes_what_kubeadm_writes() {
        let credentials = Credentials::Inline {
            certificate: b"C\n",
            key: b"K\n",
        };
        let text = create(parts("https://10.0.2.15:6443", credentials)).unwrap();
        let expected = "\
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Q0EK
    server: https://10.0.2.15:6443
  name: kubernetes
contexts:
- context:
    cluster: kubernetes
    user: system:kube-scheduler
  name: system:kube-scheduler@kubernetes
current-context: system:kube-scheduler@kubernetes
kind: Config
preferences: {}
users:
- name: system:kube-scheduler
  user:
    client-certificate-data: Qwo=
    client-key-data: Swo=
";
        assert_eq!(text, expected);
    }

    #[test]
    fn leads_to_a_file() {
        let path = GuestPath::new("/var/lib/kubelet/pki/kubelet-client-current.pem");
        let text = create(parts("https://10.0.2.15:6443", Credentials::File(&path))).unwrap();
        assert!(text.ends_with(&format!(
            "  user:\n    client-certificate: {path}\n    client-key: {path}\n"
        )));
    }

    #[test]
    fn refuses_what_yaml_would_read_otherwise() {
        for server in ["https://a: b", "https://a #b", "x\ny: z", "", "null"] {
            let credentials = Credentials::Inline {
                certificate: b"C",
                key: b"K",
            };
            assert!(create(parts(server, credentials)).is_err(), "{server:?}");
        }
    }
}
