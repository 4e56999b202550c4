//! The forms that kubeadm 1.18, 1.25, 1.29 and 1.31 give to their certificates, made by openssl
//! from the table below: renewed, and rebuilt where they are lost, they must have the same form.
//!
//! Source of the table: certlist.go and pkiutil/pki_helpers.go of each version (key identifiers of
//! CAs came with Go 1.15, basicConstraints of leaves with 1.21, DNS names in CAs with 1.22,
//! `kubeadm:cluster-admins` and etcd's clients without organization with 1.29, P-256 also in
//! kubeconfigs and NotBefore apart from the CA's with 1.31).

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tests::{Cmd, programs, x509};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::pki_support::cluster::{Cluster, P256, RSA, base64, key};
use crate::renewal::{differences, in_gos_order};
use crate::{LEAVES, certificate};

/// What distinguishes one version of kubeadm from another.
struct Version {
    name: &'static str,
    key: &'static [&'static str],
    label: &'static str,
    /// Whether its CAs have a subject key identifier, so that its leaves have an authority key
    /// identifier.
    key_identifiers: bool,
    /// Whether its CAs carry their own name as a DNS name.
    names_in_cas: bool,
    basic_constraints: bool,
    /// Since 1.29.
    cluster_admins: bool,
    /// Fields in which a renewal by rescue differs from one by this kubeadm, each on purpose.
    deliberate: &'static [&'static str],
}

const V1_18: Version = Version {
    name: "1.18.20",
    key: RSA,
    label: "RSA PRIVATE KEY",
    key_identifiers: false,
    names_in_cas: false,
    basic_constraints: false,
    cluster_admins: false,
    deliberate: &["basicConstraints"],
};
const V1_25: Version = Version {
    name: "1.25.16",
    key_identifiers: true,
    names_in_cas: true,
    basic_constraints: true,
    deliberate: &[],
    ..V1_18
};
const V1_29: Version = Version {
    name: "1.29.15",
    cluster_admins: true,
    ..V1_25
};
const V1_31: Version = Version {
    name: "1.31.14",
    key: P256,
    label: "EC PRIVATE KEY",
    deliberate: &["notBefore"],
    ..V1_29
};

const NODE: &str = "node1";
const CLUSTER_NAMES: &str = "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
    DNS:kubernetes.default.svc.cluster.local,DNS:node1,DNS:vip,IP:10.96.0.1,IP:192.168.7.11";
const ETCD_NAMES: &str = "DNS:localhost,DNS:node1,IP:192.168.7.11,IP:127.0.0.1,IP:0:0:0:0:0:0:0:1";

/// One row of certlist.go.
struct Row {
    name: &'static str,
    ca: &'static str,
    organization: Option<&'static str>,
    common_name: &'static str,
    usages: &'static str,
    names: Option<&'static str>,
}

impl Version {
    fn rows(&self) -> Vec<Row> {
        let masters = Some("system:masters");
        let admins = if self.cluster_admins {
            Some("kubeadm:cluster-admins")
        } else {
            masters
        };
        let etcd_clients = if self.cluster_admins { None } else { masters };
        let client = |name, ca, organization, common_name| Row {
            name,
            ca,
            organization,
            common_name,
            usages: "clientAuth",
            names: None,
        };
        let etcd = |name| Row {
            usages: "serverAuth,clientAuth",
            names: Some(ETCD_NAMES),
            ..client(name, "etcd/ca", None, NODE)
        };
        let mut rows = vec![
            Row {
                usages: "serverAuth",
                names: Some(CLUSTER_NAMES),
                ..client("apiserver", "ca", None, "kube-apiserver")
            },
            client(
                "apiserver-kubelet-client",
                "ca",
                admins,
                "kube-apiserver-kubelet-client",
            ),
            client(
                "front-proxy-client",
                "front-proxy-ca",
                None,
                "front-proxy-client",
            ),
            client(
                "apiserver-etcd-client",
                "etcd/ca",
                etcd_clients,
                "kube-apiserver-etcd-client",
            ),
            etcd("etcd/server"),
            etcd("etcd/peer"),
            client(
                "etcd/healthcheck-client",
                "etcd/ca",
                etcd_clients,
                "kube-etcd-healthcheck-client",
            ),
            client("admin.conf", "ca", admins, "kubernetes-admin"),
            client(
                "controller-manager.conf",
                "ca",
                None,
                "system:kube-controller-manager",
            ),
            client("scheduler.conf", "ca", None, "system:kube-scheduler"),
        ];
        if self.cluster_admins {
            rows.push(client(
                "super-admin.conf",
                "ca",
                masters,
                "kubernetes-super-admin",
            ));
        }
        rows
    }

    /// A node that this kubeadm made today, its leaves to end tomorrow.
    fn node(&self) -> Result<Cluster> {
        let node = Cluster::new()?;
        node.write("etc/hosts", "127.0.0.1 localhost\n")?;
        node.write("bin/sh", "")?;
        node.write(
            "var/lib/dpkg/status",
            format!(
                "Package: kubelet\nStatus: install ok installed\nVersion: {}-00\n\n",
                self.name
            ),
        )?;
        self.manifests(&node)?;
        for (ca, common_name) in [
            ("ca", "kubernetes"),
            ("front-proxy-ca", "front-proxy-ca"),
            ("etcd/ca", "etcd-ca"),
        ] {
            let identifier = if self.key_identifiers { "hash" } else { "none" };
            let names = if self.names_in_cas {
                format!("subjectAltName=DNS:{common_name}\n")
            } else {
                String::new()
            };
            let extensions = format!(
                "keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign\n\
                 basicConstraints=critical,CA:TRUE\nsubjectKeyIdentifier={identifier}\n\
                 authorityKeyIdentifier=none\n{names}"
            );
            self.sign(
                &node.pki(ca),
                &format!("/CN={common_name}"),
                &extensions,
                None,
            )?;
        }
        for row in self.rows() {
            let base = node.pki(row.name);
            let organization = row
                .organization
                .map_or_else(String::new, |name| format!("/O={name}"));
            let subject = format!("{organization}/CN={}", row.common_name);
            self.sign(
                &base,
                &subject,
                &self.extensions(&row),
                Some(&node.pki(row.ca)),
            )?;
            if row.name.ends_with(".conf") {
                let (certificate, private) = (path(&base, "crt"), path(&base, "key"));
                let body = format!(
                    "    client-certificate-data: {}\n    client-key-data: {}\n",
                    base64(&fs::read(&certificate)?),
                    base64(&fs::read(&private)?)
                );
                node.write(
                    &format!("etc/kubernetes/{}", row.name),
                    node.kubeconfig(row.common_name, &body)?,
                )?;
                fs::remove_file(certificate)?;
                fs::remove_file(private)?;
            }
        }
        Ok(node)
    }

    fn extensions(&self, row: &Row) -> String {
        let mut lines = vec![
            "keyUsage=critical,digitalSignature,keyEncipherment".to_owned(),
            format!("extendedKeyUsage={}", row.usages),
        ];
        if self.basic_constraints {
            lines.push("basicConstraints=critical,CA:FALSE".to_owned());
        }
        let authority = if self.key_identifiers {
            "keyid:always"
        } else {
            "none"
        };
        lines.push(format!(
            "subjectKeyIdentifier=none\nauthorityKeyIdentifier={authority}"
        ));
        lines.extend(row.names.map(|names| format!("subjectAltName={names}")));
        lines.join("\n") + "\n"
    }

    fn manifests(&self, node: &Cluster) -> Result<()> {
        let pki = "/etc/kubernetes/pki";
        let pair = |flag: &str, key: &str, name: &str| {
            [
                format!("--{flag}={pki}/{name}.crt"),
                format!("--{key}={pki}/{name}.key"),
            ]
        };
        let mut api_server = vec![
            "--advertise-address=192.168.7.11".to_owned(),
            format!("--client-ca-file={pki}/ca.crt"),
            format!("--etcd-cafile={pki}/etcd/ca.crt"),
            "--etcd-servers=https://127.0.0.1:2379".to_owned(),
            format!("--requestheader-client-ca-file={pki}/front-proxy-ca.crt"),
            "--secure-port=6443".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/12".to_owned(),
        ];
        api_server.extend(pair("tls-cert-file", "tls-private-key-file", "apiserver"));
        api_server.extend(pair(
            "kubelet-client-certificate",
            "kubelet-client-key",
            "apiserver-kubelet-client",
        ));
        api_server.extend(pair(
            "proxy-client-cert-file",
            "proxy-client-key-file",
            "front-proxy-client",
        ));
        api_server.extend(pair(
            "etcd-certfile",
            "etcd-keyfile",
            "apiserver-etcd-client",
        ));
        let mut etcd = vec![
            "--advertise-client-urls=https://192.168.7.11:2379".to_owned(),
            format!("--name={NODE}"),
            format!("--trusted-ca-file={pki}/etcd/ca.crt"),
            format!("--peer-trusted-ca-file={pki}/etcd/ca.crt"),
        ];
        etcd.extend(pair("cert-file", "key-file", "etcd/server"));
        etcd.extend(pair("peer-cert-file", "peer-key-file", "etcd/peer"));
        for (pod, flags) in [("kube-apiserver", api_server), ("etcd", etcd)] {
            node.manifest(pod, &flags.iter().map(String::as_str).collect::<Vec<_>>())?;
            let file = node
                .root()
                .join(format!("etc/kubernetes/manifests/{pod}.yaml"));
            fs::write(
                &file,
                fs::read_to_string(&file)?.replace("v1.20.2", &format!("v{}", self.name)),
            )?;
        }
        node.write(
            "var/lib/kubelet/config.yaml",
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
             clusterDomain: cluster.local\n",
        )
    }

    /// A pair as this kubeadm writes it: names as Go encodes them (PrintableString), the key in its
    /// own PEM type.
    fn sign(&self, base: &Path, subject: &str, extensions: &str, ca: Option<&Path>) -> Result<()> {
        key(self.key, &path(base, "key"))?;
        let work = tempfile::tempdir()?;
        let (config, request) = (work.path().join("config"), work.path().join("request"));
        fs::write(
            &config,
            format!(
                "[req]\nstring_mask=default\ndistinguished_name=dn\n[dn]\n[extensions]\n\
                 {extensions}"
            ),
        )?;
        let make = Cmd::new("openssl")
            .args(["req", "-new", "-subj", subject, "-config"])
            .arg(&config);
        make.arg("-key")
            .arg(path(base, "key"))
            .arg("-out")
            .arg(&request)
            .ok()?;
        let sign = Cmd::new("openssl")
            .args(["x509", "-req", "-in"])
            .arg(&request)
            .arg("-out")
            .arg(path(base, "crt"));
        let sign = sign
            .arg("-extfile")
            .arg(&config)
            .args(["-extensions", "extensions"]);
        let sign = match ca {
            Some(ca) => sign
                .args(["-days", "1", "-set_serial", "4711", "-CA"])
                .arg(path(ca, "crt"))
                .arg("-CAkey")
                .arg(path(ca, "key")),
            None => sign
                .args(["-days", "3650", "-set_serial", "0", "-signkey"])
                .arg(path(base, "key")),
        };
        sign.ok()?;
        Ok(())
    }
}

fn path(base: &Path, ending: &str) -> std::path::PathBuf {
    let mut path = base.as_os_str().to_owned();
    path.push(format!(".{ending}"));
    path.into()
}

/// Repairs the node, four hundred days from now: all leaves are over, and no date is that of its
/// making by chance.
fn repair(node: &Cluster) -> Result<()> {
    let then = OffsetDateTime::now_utc() + time::Duration::days(400);
    let now = then.replace_nanosecond(0)?.format(&Rfc3339)?;
    let ran = programs::rescue([
        "repair",
        "--yes",
        "--only",
        "certificates",
        "--now",
        &now,
        "--root",
    ]);
    ran.arg(node.root()).ok()?;
    Ok(())
}

/// The fields of all leaves by name, and their PEM labels.
fn leaves(version: &Version, node: &Cluster) -> Result<Vec<(&'static str, x509::Fields)>> {
    let read = |row: &Row| {
        Ok((
            row.name,
            x509::fields(&certificate(node.root(), row.name)?)?,
        ))
    };
    version.rows().iter().map(read).collect()
}

/// Compares what rescue made with what this kubeadm makes of the table's rows; `NotBefore` is the
/// CA's up to 1.30 and five minutes ago since.
fn compare(version: &Version, table: &[(&str, x509::Fields)], node: &Cluster) -> Result<()> {
    for ((name, theirs), row) in table.iter().zip(version.rows()) {
        let ours = x509::fields(&certificate(node.root(), name)?)?;
        let ca = x509::fields(&fs::read_to_string(path(&node.pki(row.ca), "crt"))?)?;
        ensure!(
            ours["notBefore"] == ca["notBefore"],
            "{name}: {} is not the CA's first moment",
            ours["notBefore"]
        );
        let mut theirs = theirs.clone();
        let moment = if version.deliberate.contains(&"notBefore") {
            "five minutes ago"
        } else {
            &ca["notBefore"]
        };
        theirs.insert("notBefore".to_owned(), moment.to_owned());
        let found = differences(&theirs, &ours);
        let fields: Vec<&str> = found
            .iter()
            .filter_map(|line| line.split(':').next())
            .collect();
        ensure!(
            fields == version.deliberate,
            "{} {name}: {found:#?}",
            version.name
        );
        ensure!(
            ours.contains_key("authorityKeyIdentifier") == version.key_identifiers,
            "{name}: {ours:#?}"
        );
        in_gos_order(&ours).with_context(|| format!("{} {name}", version.name))?;
        let private = if name.ends_with(".conf") {
            x509::inline(
                &fs::read_to_string(node.root().join("etc/kubernetes").join(name))?,
                "client-key-data",
            )?
        } else {
            fs::read_to_string(path(&node.pki(name), "key"))?
        };
        ensure!(
            x509::labels(&private) == [version.label],
            "{name}: {:?}",
            x509::labels(&private)
        );
    }
    Ok(())
}

fn renewed_and_rebuilt(version: &Version) -> Result<()> {
    let node = version.node()?;
    let table = leaves(version, &node)?;
    let certificates = || {
        version
            .rows()
            .iter()
            .map(|row| certificate(node.root(), row.name))
            .collect::<Result<Vec<_>>>()
    };
    let before = certificates()?;
    repair(&node)?;
    compare(version, &table, &node).context("renewed")?;
    for ((before, after), (name, _)) in before.iter().zip(certificates()?).zip(&table) {
        ensure!(
            *before != after,
            "{name} was not renewed: this proves nothing"
        );
    }
    // The kind of key is as another leaf has it; where none is left, RSA: a P-256 cluster keeps one
    // to tell.
    let witness = if version.key == P256 {
        "apiserver-kubelet-client"
    } else {
        ""
    };
    for leaf in LEAVES.into_iter().filter(|leaf| *leaf != witness) {
        for ending in ["crt", "key"] {
            fs::remove_file(path(&node.pki(leaf), ending))?;
        }
    }
    repair(&node)?;
    compare(version, &table, &node).context("rebuilt")
}

#[test]
fn as_1_18_without_key_identifiers() -> Result<()> {
    renewed_and_rebuilt(&V1_18)
}

#[test]
fn as_1_25_with_basic_constraints() -> Result<()> {
    renewed_and_rebuilt(&V1_25)
}

#[test]
fn as_1_29_with_cluster_admins() -> Result<()> {
    renewed_and_rebuilt(&V1_29)
}

#[test]
fn as_1_31_with_p256_everywhere() -> Result<()> {
    renewed_and_rebuilt(&V1_31)
}
