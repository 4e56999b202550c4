//! The remedies for lost kubeconfigs: written anew in kubeadm's form, each value with where it was
//! found.

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};
use std::rc::Rc;

use super::renew::RenewKubeletClient;
use crate::base::units;
use crate::change::Prepared;
use crate::finding::{Context, Remedy};
use crate::guest::GuestPath;
use crate::kubeconfig::create::{Credentials, Parts, create};
use crate::pki::config_evidence::{ConfigEvidence, Endpoint, Found};
use crate::pki::inventory::{Leaf, Signer};
use crate::pki::kubelet::{KubeletClient, NODE_PREFIX};
use crate::pki::peer::Peer;
use crate::pki::profile::CLIENT;
use crate::pki::trust::Party;
use crate::pki::x509::issue::{Issuer, Request, Validity, issue, subject};
use crate::pki::x509::key::Algorithm;
use crate::pki::x509::key_pool::{KeyPool, Order};
use crate::settings::Settings;

/// Where a kubeconfig leads.
#[derive(Debug, Clone)]
struct Target {
    path: GuestPath,
    cluster: Found<String>,
    server: Found<String>,
    authority: Found<String>,
}

impl Target {
    /// `Err` with what is not known.
    fn new(
        path: GuestPath,
        evidence: &ConfigEvidence<'_>,
        endpoint: Endpoint,
        others: Option<(&Party, &[Rc<Peer>])>,
    ) -> Result<Self, String> {
        let of_others = || others.and_then(|(party, peers)| evidence.servers_of(party, peers));
        let server = evidence.server(endpoint).or_else(of_others);
        Ok(Self {
            server: server.ok_or("the address of the API server is said nowhere on this disk")?,
            cluster: evidence.cluster_name(),
            authority: evidence
                .authority()
                .ok_or("there is no CA certificate to put into it")?,
            path,
        })
    }

    fn text(&self, user: &str, credentials: Credentials<'_>) -> Result<String> {
        create(Parts {
            cluster: &self.cluster.value,
            server: &self.server.value,
            authority: self.authority.value.as_bytes(),
            context: &format!("{user}@{}", self.cluster.value),
            user,
            credentials,
        })
        .with_context(|| format!("writing {}", self.path))
    }

    fn details(&self) -> Vec<String> {
        vec![
            format!("server {} ({})", self.server.value, self.server.source),
            format!("cluster {} ({})", self.cluster.value, self.cluster.source),
            format!("CA certificate from {}", self.authority.source),
        ]
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("path".to_owned(), json!(self.path.to_string()));
        fields.insert("server".to_owned(), json!(self.server.value));
        fields.insert("server_source".to_owned(), json!(self.server.source));
        fields
    }
}

/// Whom a kubeconfig stands for.
#[derive(Debug, Clone)]
struct Identity {
    user: &'static str,
    subject_raw: Vec<u8>,
    shown: String,
}

/// A new kubeconfig with a new certificate in place of a lost one of the control plane.
#[derive(Debug)]
pub struct RebuildKubeconfig {
    target: Target,
    identity: Identity,
    signer: Signer,
    validity: Validity,
    algorithm: Algorithm,
    order: Order,
    keys: Rc<KeyPool>,
}

impl RebuildKubeconfig {
    /// For the kubeconfig `leaf` at `path`; `Err` with what cannot be known.
    pub fn new(
        leaf: &Leaf,
        path: GuestPath,
        evidence: &ConfigEvidence<'_>,
        signer: &Signer,
        keys: &Rc<KeyPool>,
        settings: &Settings,
    ) -> Result<Self, String> {
        let (identity, endpoint) = identity(leaf.name, evidence)?;
        let algorithm = evidence.algorithm();
        Ok(Self {
            target: Target::new(path, evidence, endpoint, None)?,
            identity,
            signer: signer.clone(),
            validity: Validity::control_plane(&signer.certificate, settings.now, settings.days),
            algorithm,
            order: keys.order(algorithm),
            keys: Rc::clone(keys),
        })
    }
}

/// What kubeadm calls the user in one of its kubeconfigs, by file name, and where it sends it.
const USERS: [(&str, &str, Endpoint); 4] = [
    ("admin.conf", "kubernetes-admin", Endpoint::Shared),
    (
        "super-admin.conf",
        "kubernetes-super-admin",
        Endpoint::Shared,
    ),
    (
        "controller-manager.conf",
        "system:kube-controller-manager",
        Endpoint::Local,
    ),
    ("scheduler.conf", "system:kube-scheduler", Endpoint::Local),
];

/// The user in kubeadm's kubeconfig of this name.
pub fn user_of_config(name: &str) -> Option<&'static str> {
    USERS
        .iter()
        .find(|(config, _, _)| *config == name)
        .map(|(_, user, _)| *user)
}

fn identity(name: &str, evidence: &ConfigEvidence<'_>) -> Result<(Identity, Endpoint), String> {
    let known = USERS.iter().find(|(config, _, _)| *config == name);
    let (_, user, endpoint) =
        *known.ok_or_else(|| format!("{name} is none of kubeadm's kubeconfigs"))?;
    if let Some(old) = evidence.client(user) {
        let shown = format!("{} (as in {})", old.value.subject, old.source);
        return Ok((
            Identity {
                user,
                subject_raw: old.value.subject_raw.clone(),
                shown,
            },
            endpoint,
        ));
    }
    let group = match name {
        "admin.conf" => Some(evidence.administrators()),
        "super-admin.conf" => Some(Found {
            value: "system:masters",
            source: "as kubeadm 1.29 and later make it".to_owned(),
        }),
        _ => None,
    };
    let organizations: Vec<&str> = group.iter().map(|group| group.value).collect();
    let subject_raw = subject(&organizations, user).map_err(|error| format!("{error:#}"))?;
    let shown = match group {
        Some(group) => format!("O={}, CN={user} ({})", group.value, group.source),
        None => format!("CN={user} (as every kubeadm makes it)"),
    };
    Ok((
        Identity {
            user,
            subject_raw,
            shown,
        },
        endpoint,
    ))
}

impl Remedy for RebuildKubeconfig {
    fn kind(&self) -> &'static str {
        "rebuild-kubeconfig"
    }

    fn summary(&self) -> String {
        format!(
            "write {} anew, valid to {}",
            self.target.path,
            units::time(self.validity.not_after)
        )
    }

    fn details(&self) -> Vec<String> {
        let mut lines = vec![format!("subject {}", self.identity.shown)];
        lines.extend(self.target.details());
        lines.push(format!("new {} key", self.algorithm));
        lines
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = self.target.fields();
        let format = time::format_description::well_known::Rfc3339;
        fields.insert(
            "valid_to".to_owned(),
            json!(self.validity.not_after.format(&format).unwrap_or_default()),
        );
        fields
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut draft = context.draft();
        let key = self.keys.key(self.order, context.ui)?;
        let request = Request {
            subject_raw: &self.identity.subject_raw,
            alternative_names: None,
            public_key_info: &key.public_key_info(),
            key_encipherment: true,
            usages: CLIENT,
            validity: self.validity,
        };
        let issuer = Issuer {
            certificate: &self.signer.certificate,
            key: &self.signer.key,
        };
        let certificate = issue(issuer, request)
            .with_context(|| format!("issuing {}", self.identity.user))?
            .to_pem();
        let key = key.to_pem()?;
        let credentials = Credentials::Inline {
            certificate: certificate.as_bytes(),
            key: key.as_bytes(),
        };
        let text = self.target.text(self.identity.user, credentials)?;
        draft.write(&self.target.path, text, 0o600)?;
        Ok(draft.done())
    }
}

/// A new kubelet.conf that leads to `kubelet-client-current.pem`, with a new certificate there
/// where the old one is no good either.
#[derive(Debug)]
pub struct RebuildKubeletConfig {
    target: Target,
    user: String,
    current: GuestPath,
    renewal: Option<RenewKubeletClient>,
}

impl RebuildKubeletConfig {
    /// `renewal` brings the certificate, where the one in the store cannot be used. `Err` with what
    /// cannot be known.
    pub fn new(
        client: &KubeletClient,
        evidence: &ConfigEvidence<'_>,
        others: (&Party, &[Rc<Peer>]),
        renewal: Option<RenewKubeletClient>,
    ) -> Result<Self, String> {
        Ok(Self {
            target: Target::new(
                client.kubeconfig.clone(),
                evidence,
                Endpoint::Shared,
                Some(others),
            )?,
            user: user_of(client)?,
            current: client.current(),
            renewal,
        })
    }
}

/// The name of the user entry in a new kubelet.conf, as kubeadm calls it.
pub fn user_of(client: &KubeletClient) -> Result<String, String> {
    client
        .node_name
        .as_ref()
        .map(|name| format!("{NODE_PREFIX}{name}"))
        .map_err(Clone::clone)
}

impl Remedy for RebuildKubeletConfig {
    fn kind(&self) -> &'static str {
        "rebuild-kubelet-kubeconfig"
    }

    fn summary(&self) -> String {
        match &self.renewal {
            Some(renewal) => format!("write {} anew, and {}", self.target.path, renewal.summary()),
            None => format!(
                "write {} anew; the certificate in {} stays",
                self.target.path, self.current
            ),
        }
    }

    fn details(&self) -> Vec<String> {
        let mut lines = vec![format!("user {}", self.user)];
        lines.extend(self.target.details());
        lines.extend(self.renewal.iter().flat_map(Remedy::details));
        lines
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = self
            .renewal
            .as_ref()
            .map(Remedy::fields)
            .unwrap_or_default();
        fields.extend(self.target.fields());
        fields
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut draft = context.draft();
        for change in self
            .renewal
            .iter()
            .map(|renewal| renewal.prepare(context))
            .collect::<Result<Vec<_>>>()?
        {
            change
                .changes
                .into_iter()
                .try_for_each(|change| draft.push(change))?;
        }
        let text = self
            .target
            .text(&self.user, Credentials::File(&self.current))?;
        draft.write(&self.target.path, text, 0o600)?;
        Ok(draft.done())
    }
}
