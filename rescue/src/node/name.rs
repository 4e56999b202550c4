//! The name of the Node object, and all that speaks of it. No single file is believed against the
//! others: a host name changes with DHCP or cloud-init, and a certificate may have come from
//! another machine's disk.

use std::collections::BTreeSet;

use x509_parser::pem::Pem;

use super::{Fact, Kubelet, StaticPod};
use crate::base::escaping::escape;
use crate::guest::{Guest, GuestPath};
use crate::kubeconfig::{Kubeconfig, Material};

const PREFIX: &str = "system:node:";

/// Folders of pods' logs that are looked at.
const MOST_PODS: usize = 500;

/// A name and where it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// The name.
    pub name: String,
    /// `/etc/hostname`, `etcd --name`.
    pub source: String,
    /// The file.
    pub path: GuestPath,
}

/// What a node's disk says of its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// What the user said it is, with `--node-name`.
    pub decided: Option<String>,
    /// What the kubelet's client certificate is for: the API server lets it act for no other.
    pub certified: Option<Witness>,
    /// What the kubelet will call itself: `--hostname-override`, else the host name. `None` where
    /// the host name is not on the disk.
    pub registers: Option<Witness>,
    /// The rest: kubelet.conf's user, etcd's `--name`, the log folders of static pods.
    pub others: Vec<Witness>,
}

impl Names {
    /// Those that say `name`, the certificate apart.
    pub fn supporters(&self, name: &str) -> Vec<&Witness> {
        let all = self.registers.iter().chain(&self.others);
        all.filter(|witness| witness.name == name).collect()
    }

    /// The name, where nothing on the disk contradicts it too much; else what does, as a clause.
    pub fn agreed(&self) -> Result<Option<Witness>, String> {
        if let Some(name) = &self.decided {
            return Ok(Some(Witness {
                name: name.clone(),
                source: "--node-name".to_owned(),
                path: GuestPath::new("/"),
            }));
        }
        match &self.certified {
            Some(certified) => self.agreed_with(certified),
            None => self.agreed_without(),
        }
    }

    /// A changed host name alone does not outweigh the certificate; when all that is there says
    /// something else, the certificate is another machine's.
    fn agreed_with(&self, certified: &Witness) -> Result<Option<Witness>, String> {
        let against = self.registers.iter().chain(&self.others);
        let against: Vec<&Witness> = against.filter(|one| one.name != certified.name).collect();
        let is_alone = self.supporters(&certified.name).is_empty();
        let is_one_name = against.windows(2).all(|pair| match pair {
            [one, other] => one.name == other.name,
            _ => true,
        });
        if is_alone && is_one_name && against.len() > 1 {
            return Err(contradiction(std::iter::once(certified).chain(against)));
        }
        Ok(Some(certified.clone()))
    }

    /// Without a certificate all must say the same.
    fn agreed_without(&self) -> Result<Option<Witness>, String> {
        let all: Vec<&Witness> = self.others.iter().chain(&self.registers).collect();
        let names: BTreeSet<&str> = all.iter().map(|witness| witness.name.as_str()).collect();
        match (names.len(), self.registers.as_ref().or(self.others.first())) {
            (0, _) | (_, None) => Ok(None),
            (1, Some(first)) => Ok(Some(first.clone())),
            _ => Err(contradiction(all.into_iter())),
        }
    }
}

fn contradiction<'a>(witnesses: impl Iterator<Item = &'a Witness>) -> String {
    let said: Vec<String> = witnesses
        .map(|witness| format!("{} says {:?}", witness.source, witness.name))
        .collect();
    format!(
        "the node's name is in doubt: {}; --node-name NAME decides",
        said.join(", ")
    )
}

/// Gathers all of them. `decided`: what the user said.
pub(super) fn read(
    guest: &Guest,
    kubelet: &Kubelet,
    hostname: &Fact<String>,
    pods: &[StaticPod],
    decided: Option<&str>,
) -> Names {
    let mut others = Vec::new();
    others.extend(kubeconfig_user(guest, kubelet));
    others.extend(etcd_name(pods));
    others.extend(mirror_pods(guest));
    Names {
        decided: decided.map(str::to_owned),
        certified: from_certificate(guest, kubelet),
        registers: registers(kubelet, hostname),
        others,
    }
}

/// The name as a fact.
pub(super) fn find(names: &Names) -> Fact<String> {
    match names.agreed() {
        Ok(Some(witness)) => Fact::known(witness.name, witness.source),
        Ok(None) => {
            Fact::unknown("no kubelet client certificate, no --hostname-override, no /etc/hostname")
        }
        Err(why) => Fact::unknown(why),
    }
}

/// `--hostname-override`, else the host name in lower case, as the kubelet itself takes it
/// (GetHostname in pkg/util/node/node.go).
fn registers(kubelet: &Kubelet, hostname: &Fact<String>) -> Option<Witness> {
    let given = kubelet.flag("--hostname-override");
    if let Some(name) = given.filter(|name| !name.trim().is_empty()) {
        let path = kubelet
            .flag_origin("--hostname-override")
            .map_or_else(|| GuestPath::new("/"), |origin| origin.path);
        return Some(Witness {
            name: escape(&name.trim().to_lowercase()),
            source: "kubelet's --hostname-override".to_owned(),
            path,
        });
    }
    let name = hostname.value.as_deref()?.trim().to_lowercase();
    // Such a name gives way to what DHCP says.
    let is_none = ["localhost", "localhost.localdomain"].contains(&name.as_str());
    (!is_none).then(|| Witness {
        name: escape(&name),
        source: format!("{}, in lower case", hostname.source),
        path: GuestPath::new(&hostname.source),
    })
}

/// The user entry that kubeadm writes, `system:node:NAME`; `default-auth` once the kubelet has
/// written the file.
fn kubeconfig_user(guest: &Guest, kubelet: &Kubelet) -> Option<Witness> {
    let path = kubelet.kubeconfig.value.as_ref()?;
    let kubeconfig = Kubeconfig::parse(&guest.read(path).ok()?, path).ok()?;
    let name = kubeconfig.current_user()?.name.strip_prefix(PREFIX)?;
    Some(Witness {
        name: escape(name),
        source: format!("{path} user"),
        path: path.clone(),
    })
}

/// kubeadm calls the member as it calls the node.
fn etcd_name(pods: &[StaticPod]) -> Option<Witness> {
    let pod = pods.iter().find(|pod| pod.name == "etcd")?;
    let name = pod.flag("--name").filter(|name| !name.is_empty())?;
    Some(Witness {
        name: escape(name),
        source: format!("{} --name", pod.path),
        path: pod.path.clone(),
    })
}

/// The kubelet calls a static pod NAME-NODE, and its folder of logs kube-system_NAME-NODE_UID. Of
/// several names that the node once had, none is taken.
fn mirror_pods(guest: &Guest) -> Option<Witness> {
    const PODS: [&str; 4] = [
        "kube-system_kube-apiserver-",
        "kube-system_kube-controller-manager-",
        "kube-system_kube-scheduler-",
        "kube-system_etcd-",
    ];
    let top = GuestPath::new("/var/log/pods");
    let entries = guest.read_dir(&top).unwrap_or_default();
    let mut found = BTreeSet::new();
    for entry in entries.into_iter().take(MOST_PODS) {
        let folder = entry.name.to_string_lossy().into_owned();
        let node = PODS.iter().find_map(|pod| folder.strip_prefix(pod));
        if let Some((node, _)) = node.and_then(|rest| rest.rsplit_once('_')) {
            found.insert((node.to_owned(), folder.clone()));
        }
    }
    let names: BTreeSet<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    let (name, folder) = found.first().filter(|_| names.len() == 1)?;
    Some(Witness {
        name: escape(name),
        source: "the logs of its static pods".to_owned(),
        path: top.join(folder),
    })
}

fn from_certificate(guest: &Guest, kubelet: &Kubelet) -> Option<Witness> {
    let (pem, source, path) =
        inline_or_referenced(guest, kubelet).or_else(|| current_pem(guest, kubelet))?;
    let block = Pem::iter_from_buffer(&pem)
        .flatten()
        .find(|block| block.label == "CERTIFICATE")?;
    let certificate = block.parse_x509().ok()?;
    let name = certificate
        .subject()
        .iter_common_name()
        .filter_map(|name| name.as_str().ok())
        .find_map(|name| name.strip_prefix(PREFIX))?;
    (!name.is_empty()).then(|| Witness {
        name: name.to_owned(),
        source,
        path,
    })
}

fn inline_or_referenced(guest: &Guest, kubelet: &Kubelet) -> Option<(Vec<u8>, String, GuestPath)> {
    let path = kubelet.kubeconfig.value.as_ref()?;
    let kubeconfig = Kubeconfig::parse(&guest.read(path).ok()?, path).ok()?;
    match &kubeconfig.current_user()?.certificate {
        Material::Inline(pem) => {
            let source = format!("{path} client-certificate-data");
            Some((pem.clone(), source, path.clone()))
        }
        Material::File(file) => Some((guest.read(file).ok()?, file.to_string(), file.clone())),
        Material::None => None,
    }
}

fn current_pem(guest: &Guest, kubelet: &Kubelet) -> Option<(Vec<u8>, String, GuestPath)> {
    let path: GuestPath = kubelet
        .cert_dir
        .value
        .as_ref()?
        .join("kubelet-client-current.pem");
    Some((guest.read(&path).ok()?, path.to_string(), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn witness(source: &str, name: &str) -> Witness {
        Witness {
            name: name.to_owned(),
            source: source.to_owned(),
            path: GuestPath::new("/"),
        }
    }

    fn names(certified: Option<&str>, registers: Option<&str>, others: &[&str]) -> Names {
        Names {
            decided: None,
            certified: certified.map(|name| witness("certificate", name)),
            registers: registers.map(|name| witness("hostname", name)),
            others: others.iter().map(|name| witness("other", name)).collect(),
        }
    }

    fn agreed(names: &Names) -> Option<String> {
        names.agreed().ok().flatten().map(|witness| witness.name)
    }

    #[test]
    fn the_certificate_outweighs_a_host_name_but_not_everything() {
        assert_eq!(
            agreed(&names(Some("a"), Some("b"), &["a"])).as_deref(),
            Some("a")
        );
        assert_eq!(
            agreed(&names(Some("a"), Some("b"), &[])).as_deref(),
            Some("a")
        );
        assert_eq!(
            agreed(&names(Some("a"), None, &["b"])).as_deref(),
            Some("a")
        );
        let why = names(Some("a"), Some("b"), &["b"]).agreed().unwrap_err();
        assert!(
            why.contains("\"a\"") && why.contains("--node-name"),
            "{why}"
        );
    }

    #[test]
    fn without_a_certificate_all_must_say_the_same() {
        assert_eq!(
            agreed(&names(None, Some("a"), &["a", "a"])).as_deref(),
            Some("a")
        );
        assert_eq!(agreed(&names(None, None, &["a"])).as_deref(), Some("a"));
        assert!(names(None, Some("a.example.org"), &["a"]).agreed().is_err());
        assert!(names(None, Some("a"), &["a", "b"]).agreed().is_err());
        assert_eq!(agreed(&names(None, None, &[])), None);
    }

    #[test]
    fn the_user_decides() {
        let doubtful = Names {
            decided: Some("c".to_owned()),
            ..names(None, Some("a"), &["b"])
        };
        assert_eq!(agreed(&doubtful).as_deref(), Some("c"));
    }
}
