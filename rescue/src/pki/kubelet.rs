//! The kubelet's client certificate. Sources for the rules: client-go's
//! util/certificate/certificate_store.go, the kubelet's buildKubeletClientConfig and
//! bootstrap.isClientConfigStillValid, unchanged from 1.13 to 1.33.

use time::OffsetDateTime;

use super::inventory::{
    AuthorityState, Problem, Verdict, dates, key_problem, read as read_file, trusted_by,
};
use super::kubelet_serving::OwnPair;
use super::x509::certificate::{Certificate, SignatureCheck};
use crate::guest::{Guest, GuestPath};
use crate::kubeconfig::{Kubeconfig, Material, User};
use crate::node::{Node, Role};
use crate::tree::FileKind;

/// The prefix of every kubelet's common name and of its user in a kubeconfig that kubeadm wrote.
pub const NODE_PREFIX: &str = "system:node:";

/// What the kubelet authenticates with.
#[derive(Debug, Clone)]
pub struct KubeletClient {
    /// Its kubeconfig, usually /etc/kubernetes/kubelet.conf.
    pub kubeconfig: GuestPath,
    /// `--cert-dir`, usually /var/lib/kubelet/pki.
    pub cert_dir: GuestPath,
    /// The user of the current context; `None` where the kubeconfig does not lead to one.
    pub user: Option<String>,
    /// Whether the kubeconfig is not there, or holds nothing that would be lost with it.
    pub config_is_lost: bool,
    /// The certificate that the kubeconfig leads to, else the one in `kubelet-client-current.pem`.
    pub certificate: Option<Certificate>,
    /// What follows it there.
    pub chain: Vec<Certificate>,
    /// Where that is.
    pub certificate_path: Option<GuestPath>,
    /// What is wrong, worst first.
    pub problems: Vec<Problem>,
    /// Whether certificate and key of the kubeconfig both are `kubelet-client-current.pem` already,
    /// and nothing else.
    pub points_to_current: bool,
    /// The node's name, or why it cannot be known.
    pub node_name: Result<String, String>,
    /// Things to say when it is renewed.
    pub remarks: Vec<String>,
    /// Why it must be left alone although something is wrong with it.
    pub foreign: Option<String>,
}

impl KubeletClient {
    /// The worst of its problems.
    pub fn verdict(&self) -> Verdict {
        self.problems
            .first()
            .map_or(Verdict::Ok, |problem| problem.verdict)
    }

    /// The file to name when speaking of it.
    pub fn path(&self) -> &GuestPath {
        self.certificate_path.as_ref().unwrap_or(&self.kubeconfig)
    }

    /// `kubelet-client-current.pem` in the certificate folder.
    pub fn current(&self) -> GuestPath {
        current(&self.cert_dir)
    }

    /// Whether the kubelet can authenticate with what it has: neither expired nor broken.
    pub fn is_usable(&self) -> bool {
        matches!(
            self.verdict(),
            Verdict::Ok | Verdict::Expiring | Verdict::Misplaced
        )
    }
}

fn current(cert_dir: &GuestPath) -> GuestPath {
    cert_dir.join("kubelet-client-current.pem")
}

/// The kubelet's self-signed serving certificate, if it uses one, and it is there and readable.
pub fn serving(guest: &Guest, node: &Node) -> Option<(GuestPath, Certificate)> {
    let path = OwnPair::of(node)?.certificate;
    let bytes = guest.read(&path).ok()?;
    let certificate = Certificate::all_from_pem(&bytes).ok()?.into_iter().next()?;
    Some((path, certificate))
}

fn cert_dir(node: &Node) -> GuestPath {
    node.kubelet
        .cert_dir
        .value
        .clone()
        .unwrap_or_else(|| GuestPath::new("/var/lib/kubelet/pki"))
}

/// Reads it; `None` where there is no kubelet, or one that authenticates by other means or not at
/// all.
pub fn read(
    guest: &Guest,
    node: &Node,
    now: OffsetDateTime,
    authority: Option<&AuthorityState>,
) -> Option<KubeletClient> {
    // A kubelet that belongs to no cluster authenticates to nobody.
    if node.role.value == Some(Role::Etcd) {
        return None;
    }
    let kubeconfig = node
        .kubelet
        .kubeconfig
        .value
        .clone()
        .unwrap_or_else(|| GuestPath::new("/etc/kubernetes/kubelet.conf"));
    let cert_dir = cert_dir(node);
    // Without either there is no kubelet that ever joined; but a control plane has one, or had.
    let is_control_plane =
        node.role.value == Some(Role::ControlPlane) && node.kubelet.unit.is_some();
    if !guest.exists(&kubeconfig) && !guest.exists(&cert_dir) && !is_control_plane {
        return None;
    }
    let mut client = KubeletClient {
        kubeconfig,
        cert_dir,
        user: None,
        config_is_lost: false,
        certificate: None,
        chain: Vec::new(),
        certificate_path: None,
        problems: Vec::new(),
        points_to_current: false,
        node_name: Err(String::new()),
        remarks: Vec::new(),
        foreign: None,
    };
    let config = client.parse(guest);
    let (mut user_name, mut cut_name) = (None, None);
    if let Some(config) = &config {
        match config.current_user() {
            Some(user) if is_certificate_less(user) => return None,
            Some(user) if !user.has_body => {
                let saw = format!("the entry of user {} is cut off", user.name);
                cut_name = Some(user.name.clone());
                client
                    .problems
                    .push(Problem::new(Verdict::Unreadable, &client.kubeconfig, saw));
            }
            Some(user) => {
                user_name = Some(user.name.clone());
                client.read_user(guest, user);
            }
            None => client.problems.push(Problem::new(
                Verdict::Unreadable,
                &client.kubeconfig,
                "its current-context leads to no user",
            )),
        }
        client.user.clone_from(&user_name);
    }
    let stored = client.read_store(guest);
    client.judge(guest, now, authority, config.as_ref());
    client.judge_decided(node);
    client.node_name = client.name(node, user_name.or(cut_name).as_deref(), stored.as_ref());
    if client.certificate.is_none() {
        client.certificate = stored;
    }
    client
        .problems
        .sort_by_key(|problem| std::cmp::Reverse(problem.verdict));
    Some(client)
}

/// Tokens, exec plugins: a cloud's kubelet.
fn is_certificate_less(user: &User) -> bool {
    user.certificate == Material::None && user.key == Material::None && !user.others.is_empty()
}

impl KubeletClient {
    fn parse(&mut self, guest: &Guest) -> Option<Kubeconfig> {
        self.config_is_lost = crate::kubeconfig::is_lost(guest, &self.kubeconfig);
        let bytes = read_file(guest, &self.kubeconfig, &mut self.problems)?;
        match Kubeconfig::parse(&bytes, &self.kubeconfig) {
            Ok(config) => Some(config),
            Err(error) => {
                self.problems.push(Problem::new(
                    Verdict::Unreadable,
                    &self.kubeconfig,
                    format!("{error:#}"),
                ));
                None
            }
        }
    }

    fn read_user(&mut self, guest: &Guest, user: &User) {
        if user.both_specified {
            let saw = format!(
                "user {} has both data and files, which the kubelet refuses",
                user.name
            );
            self.problems
                .push(Problem::new(Verdict::Misplaced, &self.kubeconfig, saw));
        }
        let is_current = |material: &Material| match material {
            Material::File(path) => same_place(guest, path, &self.current()),
            _ => false,
        };
        self.points_to_current =
            !user.both_specified && is_current(&user.certificate) && is_current(&user.key);
        let (certificate, path) = match &user.certificate {
            Material::Inline(bytes) => (Some(bytes.clone()), self.kubeconfig.clone()),
            Material::File(path) => (read_file(guest, path, &mut self.problems), path.clone()),
            Material::None => {
                let saw = format!("user {} has no client certificate", user.name);
                self.problems
                    .push(Problem::new(Verdict::Missing, &self.kubeconfig, saw));
                return;
            }
        };
        self.certificate_path = Some(path.clone());
        let Some(certificate) = certificate else {
            return;
        };
        let (key, key_path) = match &user.key {
            Material::Inline(bytes) => (Ok(bytes.clone()), self.kubeconfig.clone()),
            Material::File(path) => (
                guest.read(path).map_err(|error| error.to_string()),
                path.clone(),
            ),
            Material::None => (
                Err(format!("user {} has no client key", user.name)),
                self.kubeconfig.clone(),
            ),
        };
        let key = key.as_deref().map_err(String::as_str);
        let mut all = self.pair(&certificate, &path, key, &key_path).into_iter();
        self.certificate = all.next();
        self.chain = all.collect();
    }

    /// The certificates of a pair, leaf first; problems are noted.
    fn pair(
        &mut self,
        certificate: &[u8],
        path: &GuestPath,
        key: Result<&[u8], &str>,
        key_path: &GuestPath,
    ) -> Vec<Certificate> {
        let all = match Certificate::all_from_pem(certificate) {
            Ok(all) => all,
            Err(error) => {
                self.problems.push(Problem::new(
                    Verdict::Unreadable,
                    path,
                    format!("{error:#}"),
                ));
                return Vec::new();
            }
        };
        self.problems
            .extend(key_problem(all.first(), key, key_path));
        all
    }

    /// What is in `kubelet-client-current.pem`, which the kubelet's store loads before it asks the
    /// kubeconfig. Damage there is fatal to it; an expired one beside a good inline certificate is
    /// not.
    fn read_store(&mut self, guest: &Guest) -> Option<Certificate> {
        let current = self.current();
        let meta = guest.lstat(&current).ok()?;
        if meta.kind == FileKind::Regular {
            let saw = "a file where the kubelet keeps a link: it cannot store its next certificate";
            self.problems
                .push(Problem::new(Verdict::Misplaced, &current, saw));
        }
        if self
            .certificate_path
            .as_ref()
            .is_some_and(|path| same_place(guest, path, &current))
        {
            return self.certificate.clone();
        }
        let bytes = match guest.read(&current) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return None,
            Err(error) => {
                self.problems.push(Problem::new(
                    Verdict::Unreadable,
                    &current,
                    error.to_string(),
                ));
                return None;
            }
        };
        self.pair(&bytes, &current, Ok(&bytes), &current)
            .into_iter()
            .next()
    }

    fn judge(
        &mut self,
        guest: &Guest,
        now: OffsetDateTime,
        authority: Option<&AuthorityState>,
        config: Option<&Kubeconfig>,
    ) {
        // isClientConfigStillValid takes any expired certificate in the data for the leaf's own
        // end, an appended CA too.
        let expired = self.chain.iter().filter(|other| other.not_after < now);
        let expired: Vec<Problem> = expired
            .filter_map(|other| dates(other, self.path(), now))
            .collect();
        self.problems.extend(expired);
        let Some(state) = authority.filter(|state| !state.certificates.is_empty()) else {
            if let Some(certificate) = &self.certificate {
                self.problems.extend(dates(certificate, self.path(), now));
            }
            return;
        };
        if let Some(certificate) = &self.certificate {
            let mut problems: Vec<Problem> =
                dates(certificate, self.path(), now).into_iter().collect();
            if state.issued(certificate, &self.chain) == SignatureCheck::Invalid {
                let saw = format!(
                    "issued by {}, not by {}",
                    certificate.issuer, state.certificate_path
                );
                problems.push(Problem::new(Verdict::WrongIssuer, self.path(), saw));
            }
            problems.extend(self.other_identity(certificate));
            self.problems.extend(problems);
        }
        let trusted = config
            .map(|config| trusted_by(guest, config))
            .unwrap_or_default();
        if !trusted.is_empty() && !state.is_among(&trusted) {
            self.foreign = Some(format!(
                "{} trusts another CA than {}",
                self.kubeconfig, state.certificate_path
            ));
        }
    }

    /// An administrator's certificate where a node's belongs: the kubelet then does what it likes,
    /// and judges its credentials by the end of this one, whatever its store holds
    /// (isClientConfigStillValid).
    fn other_identity(&self, certificate: &Certificate) -> Option<Problem> {
        let name = certificate.common_name.as_deref().unwrap_or_default();
        (!name.starts_with(NODE_PREFIX)).then(|| {
            let saw = format!(
                "it is for {}, and a node's belongs there",
                certificate.subject
            );
            Problem::new(Verdict::OtherIdentity, self.path(), saw)
        })
    }

    /// A certificate for another node than the one that the user named.
    fn judge_decided(&mut self, node: &Node) {
        let certified = self.certificate.as_ref();
        let certified = certified.and_then(|one| one.common_name.as_deref());
        let Some((decided, certified)) = node.names.decided.as_ref().zip(certified) else {
            return;
        };
        if certified.strip_prefix(NODE_PREFIX) != Some(decided) {
            let path = self.certificate_path.as_ref().unwrap_or(&self.kubeconfig);
            let saw = format!("CN={certified}, and --node-name says {decided}");
            self.problems
                .push(Problem::new(Verdict::NamesMissing, path, saw));
        }
    }

    /// The old certificate knows best; a kubeconfig of kubeadm's names the node too. Where neither
    /// says it, the node's own facts.
    fn name(
        &mut self,
        node: &Node,
        user: Option<&str>,
        stored: Option<&Certificate>,
    ) -> Result<String, String> {
        let of_certificate = |certificate: &Certificate| {
            certificate
                .common_name
                .as_deref()
                .and_then(|name| name.strip_prefix(NODE_PREFIX))
                .map(str::to_owned)
        };
        let certified = self
            .certificate
            .as_ref()
            .and_then(of_certificate)
            .or_else(|| stored.and_then(of_certificate));
        let user = user
            .and_then(|user| user.strip_prefix(NODE_PREFIX))
            .map(str::to_owned);
        if let Some(decided) = &node.names.decided {
            if !is_node_name(decided) {
                return Err(format!("{decided:?} is no valid node name"));
            }
            return Ok(decided.clone());
        }
        node.names.agreed()?;
        let fact = node.node_name.value.clone();
        let known = match (certified, user) {
            (Some(certified), Some(user)) if certified != user => {
                return Err(format!(
                    "the certificate is for node {certified:?}, its user in the kubeconfig for \
                     {user:?}"
                ));
            }
            (Some(name), _) | (None, Some(name)) => name,
            (None, None) => {
                let name = fact.filter(|name| is_node_name(name)).ok_or_else(|| {
                    "neither the old certificate nor the kubeconfig nor the node's settings say \
                     its name"
                        .to_owned()
                })?;
                self.remarks.push(format!(
                    "the node's name {name:?} is taken from {}",
                    node.node_name.source
                ));
                return Ok(name);
            }
        };
        if !is_node_name(&known) {
            return Err(format!("{known:?} is no valid node name"));
        }
        if let Some(fact) = fact.filter(|fact| *fact != known) {
            let source = &node.node_name.source;
            self.remarks.push(format!(
                "the certificate stays for node {known:?}, although {source} says {fact:?}"
            ));
        }
        Ok(known)
    }
}

/// RFC 1123 subdomain, as the API server requires of a Node's name.
pub fn is_node_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// The same name in the same folder, links in the folder's path followed.
fn same_place(guest: &Guest, one: &GuestPath, other: &GuestPath) -> bool {
    one == other
        || match (guest.resolve_parent(one), guest.resolve_parent(other)) {
            (Ok(one), Ok(other)) => one == other,
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_node_names() {
        assert!(is_node_name("k8s-master01"));
        assert!(is_node_name("ip-10-0-0-1.eu-west-1.compute.internal"));
        for bad in ["", "Master", "a..b", "-a", "a_b", "a\nb"] {
            assert!(!is_node_name(bad), "{bad}");
        }
    }
}
