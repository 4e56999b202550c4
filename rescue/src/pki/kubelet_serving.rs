//! The pair that the kubelet serves with where nothing else is configured: `kubelet.crt` and
//! `kubelet.key`. Sources for the rules: InitializeTLS in cmd/kubelet/app/server.go,
//! CanReadCertAndKey in client-go's util/cert/io.go. The kubelet makes the pair when neither file
//! is there, insists on both when one is, and exits when they cannot be loaded. It never looks at
//! the dates.

use serde_json::Value;

use super::inventory::{Problem, Verdict, key_problem};
use super::x509::certificate::Certificate;
use crate::base::yaml;
use crate::guest::{Guest, GuestPath};
use crate::node::Node;

/// Whether the kubelet has its serving certificate signed by the cluster, in
/// `kubelet-server-current.pem`: `serverTLSBootstrap` in its config, or the flag, which wins.
pub fn asks_the_cluster(node: &Node) -> bool {
    match node.kubelet.flag("--rotate-server-certificates") {
        Some(value) => value != "false",
        None => {
            yaml::at(&node.kubelet.config, &["serverTLSBootstrap"]).and_then(Value::as_bool)
                == Some(true)
        }
    }
}

/// Where it keeps that certificate with its key.
pub fn asked_for(node: &Node) -> GuestPath {
    cert_dir(node).join("kubelet-server-current.pem")
}

fn cert_dir(node: &Node) -> GuestPath {
    node.kubelet
        .cert_dir
        .value
        .clone()
        .unwrap_or_else(|| GuestPath::new("/var/lib/kubelet/pki"))
}

/// Where the kubelet keeps the pair that it made for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnPair {
    /// `kubelet.crt`.
    pub certificate: GuestPath,
    /// `kubelet.key`.
    pub key: GuestPath,
}

impl OwnPair {
    /// `None` where the kubelet does not use it: its config or flags name another pair, or it asks
    /// the cluster for one.
    pub fn of(node: &Node) -> Option<Self> {
        let kubelet = &node.kubelet;
        let named = |flag: &str, key: &str| {
            kubelet.flag(flag).is_some_and(|path| !path.is_empty())
                || yaml::text_at(&kubelet.config, &[key]).is_some_and(|path| !path.is_empty())
        };
        if asks_the_cluster(node)
            || named("--tls-cert-file", "tlsCertFile")
            || named("--tls-private-key-file", "tlsPrivateKeyFile")
        {
            return None;
        }
        let folder = cert_dir(node);
        Some(Self {
            certificate: folder.join("kubelet.crt"),
            key: folder.join("kubelet.key"),
        })
    }

    /// Why the kubelet exits with it; `None` where it does not, also where neither file is there.
    pub fn fault(&self, guest: &Guest) -> Option<Problem> {
        let (certificate, key) = (guest.read(&self.certificate), guest.read(&self.key));
        let missing = |path: &GuestPath| {
            Some(Problem::new(
                Verdict::Missing,
                path,
                "not there, and the kubelet insists on certificate and key together",
            ))
        };
        let (certificate, key) = match (certificate, key) {
            (Err(one), Err(other)) if one.is_not_found() && other.is_not_found() => return None,
            (Err(error), _) if error.is_not_found() => return missing(&self.certificate),
            (_, Err(error)) if error.is_not_found() => return missing(&self.key),
            (Err(error), _) => {
                return Some(Problem::new(
                    Verdict::Unreadable,
                    &self.certificate,
                    error.to_string(),
                ));
            }
            (_, Err(error)) => {
                return Some(Problem::new(
                    Verdict::KeyUnusable,
                    &self.key,
                    error.to_string(),
                ));
            }
            (Ok(certificate), Ok(key)) => (certificate, key),
        };
        match Certificate::all_from_pem(&certificate) {
            Ok(all) => key_problem(all.first(), Ok(&key), &self.key),
            Err(error) => Some(Problem::new(
                Verdict::Unreadable,
                &self.certificate,
                format!("{error:#}"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    const CERTIFICATE: &str = "/var/lib/kubelet/pki/kubelet.crt";
    const KEY: &str = "/var/lib/kubelet/pki/kubelet.key";

    fn pair() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["node1".to_owned()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn guest(files: &[(&str, &str)], config: &str) -> Guest {
        let tree = MemoryTree::new()
            .dir("/var/lib/kubelet/pki")
            .file("/var/lib/kubelet/config.yaml", config);
        files
            .iter()
            .fold(tree, |tree, (path, text)| tree.file(path, text))
            .into_guest()
    }

    fn fault(files: &[(&str, &str)]) -> Option<Verdict> {
        let guest = guest(files, "kind: KubeletConfiguration\n");
        let pair = OwnPair::of(&Node::read(&guest)).expect("the kubelet's own");
        pair.fault(&guest).map(|problem| problem.verdict)
    }

    #[test]
    fn knows_what_the_kubelet_exits_with() {
        let ((certificate, key), (_, other)) = (pair(), pair());
        assert_eq!(fault(&[]), None);
        assert_eq!(fault(&[(CERTIFICATE, &certificate), (KEY, &key)]), None);
        assert_eq!(
            fault(&[(CERTIFICATE, &certificate)]),
            Some(Verdict::Missing)
        );
        assert_eq!(fault(&[(KEY, &key)]), Some(Verdict::Missing));
        assert_eq!(
            fault(&[(CERTIFICATE, ""), (KEY, &key)]),
            Some(Verdict::Unreadable)
        );
        assert_eq!(
            fault(&[(CERTIFICATE, &certificate), (KEY, "")]),
            Some(Verdict::KeyUnusable)
        );
        assert_eq!(
            fault(&[(CERTIFICATE, &certificate), (KEY, &other)]),
            Some(Verdict::KeyMismatch)
        );
        let cut = &certificate[..certificate.len() / 2];
        assert_eq!(
            fault(&[(CERTIFICATE, cut), (KEY, &key)]),
            Some(Verdict::Unreadable)
        );
    }

    #[test]
    fn leaves_alone_what_is_configured_otherwise() {
        for config in [
            "serverTLSBootstrap: true\n",
            "tlsCertFile: /a\ntlsPrivateKeyFile: /b\n",
        ] {
            assert_eq!(
                OwnPair::of(&Node::read(&guest(&[], config))),
                None,
                "{config}"
            );
        }
    }
}
