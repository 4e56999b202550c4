//! kubeconfig files: what the current context uses, and editing single values in place.

pub mod create;
pub mod edit;
pub mod homes;

use anyhow::{Context, Result, anyhow};
use base64::Engine as _;
use serde_json::Value;

use crate::base::yaml;
use crate::guest::{Guest, GuestPath};

/// Where a kubeconfig keeps a certificate or key.
#[derive(Clone, PartialEq, Eq)]
pub enum Material {
    /// `…-data`: the decoded bytes, usually PEM.
    Inline(Vec<u8>),
    /// A file; a relative path counts from the kubeconfig's folder.
    File(GuestPath),
    /// Neither.
    None,
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(bytes) => write!(f, "Inline({} bytes)", bytes.len()),
            Self::File(path) => write!(f, "File({path})"),
            Self::None => write!(f, "None"),
        }
    }
}

/// A user entry.
#[derive(Debug, Clone)]
pub struct User {
    /// Its name.
    pub name: String,
    /// `client-certificate-data` or `client-certificate`.
    pub certificate: Material,
    /// `client-key-data` or `client-key`.
    pub key: Material,
    /// Whether both inline data and a file are given, which clientcmd refuses ("both specified").
    pub both_specified: bool,
    /// Whether the entry is a mapping or empty; a file that was cut off may end in its first word.
    pub has_body: bool,
    /// Other ways to authenticate in the entry: `token`, `exec`, `auth-provider` …
    pub others: Vec<String>,
}

/// A cluster entry.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// `server`.
    pub server: Option<String>,
    /// `certificate-authority-data` or `certificate-authority`.
    pub certificate_authority: Material,
    /// `tls-server-name`: what the server's certificate must be for instead of `server`'s host.
    pub tls_server_name: Option<String>,
    /// `insecure-skip-tls-verify`.
    pub insecure: bool,
}

/// A parsed kubeconfig.
#[derive(Debug, Clone)]
pub struct Kubeconfig {
    /// All users.
    pub users: Vec<User>,
    /// All clusters.
    pub clusters: Vec<Cluster>,
    /// Contexts as (name, cluster, user).
    pub contexts: Vec<(String, String, String)>,
    /// `current-context`.
    pub current_context: Option<String>,
}

impl Kubeconfig {
    /// Parses; `path` is where the file is in the guest, for relative references.
    pub fn parse(bytes: &[u8], path: &GuestPath) -> Result<Self> {
        let root = yaml::parse(bytes)?;
        let list = |key: &str| {
            root.get(key)
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default()
        };
        let folder = path.parent();
        let mut users = Vec::new();
        for entry in list("users") {
            let name = text(&entry, "name");
            let body = entry.get("user").cloned().unwrap_or(Value::Null);
            let certificate = material(&body, "client-certificate", &folder)
                .with_context(|| format!("user {name:?}"))?;
            let key =
                material(&body, "client-key", &folder).with_context(|| format!("user {name:?}"))?;
            let both = |key: &str| {
                !text(&body, key).is_empty() && !text(&body, &format!("{key}-data")).is_empty()
            };
            let both_specified = both("client-certificate") || both("client-key");
            let others = other_credentials(&body);
            let has_body = entry
                .get("user")
                .is_some_and(|body| body.is_object() || body.is_null());
            users.push(User {
                name,
                certificate,
                key,
                both_specified,
                has_body,
                others,
            });
        }
        let mut clusters = Vec::new();
        for entry in list("clusters") {
            let name = text(&entry, "name");
            let body = entry.get("cluster").cloned().unwrap_or(Value::Null);
            let certificate_authority = material(&body, "certificate-authority", &folder)
                .with_context(|| format!("cluster {name:?}"))?;
            clusters.push(Cluster {
                server: body
                    .get("server")
                    .and_then(Value::as_str)
                    .map(str::to_owned),
                tls_server_name: Some(text(&body, "tls-server-name"))
                    .filter(|name| !name.is_empty()),
                insecure: body
                    .get("insecure-skip-tls-verify")
                    .and_then(Value::as_bool)
                    .unwrap_or_default(),
                name,
                certificate_authority,
            });
        }
        let contexts = list("contexts")
            .iter()
            .map(|entry| {
                let body = entry.get("context").cloned().unwrap_or(Value::Null);
                (
                    text(entry, "name"),
                    text(&body, "cluster"),
                    text(&body, "user"),
                )
            })
            .collect();
        let current_context = root
            .get("current-context")
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
            .map(str::to_owned);
        Ok(Self {
            users,
            clusters,
            contexts,
            current_context,
        })
    }

    /// The user of the current context.
    pub fn current_user(&self) -> Option<&User> {
        let current = self.current_context.as_ref()?;
        let (_, _, user) = self.contexts.iter().find(|(name, _, _)| name == current)?;
        self.users.iter().find(|entry| &entry.name == user)
    }

    /// The cluster of the current context.
    pub fn current_cluster(&self) -> Option<&Cluster> {
        let current = self.current_context.as_ref()?;
        let (_, cluster, _) = self.contexts.iter().find(|(name, _, _)| name == current)?;
        self.clusters.iter().find(|entry| &entry.name == cluster)
    }
}

/// Whether nothing would be lost with the file: it is not there, is not YAML, or has at most one
/// user and one cluster, as kubeadm writes it. A file that cannot be read for another reason (a
/// folder, a loop of links) is not lost.
pub fn is_lost(guest: &Guest, path: &GuestPath) -> bool {
    let bytes = match guest.read(path) {
        Ok(bytes) => bytes,
        Err(error) => return error.is_not_found(),
    };
    // A slip of somebody who edited it by hand: what it holds beside kubeadm's own entry can still
    // be read by a person.
    if bytes.windows(7).filter(|word| word == b"server:").count() > 1 {
        return false;
    }
    let Ok(root) = yaml::parse(&bytes) else {
        return true;
    };
    let count = |key: &str| root.get(key).and_then(Value::as_array).map_or(0, Vec::len);
    ["users", "clusters", "contexts"]
        .iter()
        .all(|key| count(key) <= 1)
}

fn other_credentials(body: &Value) -> Vec<String> {
    const OTHERS: [&str; 6] = [
        "token",
        "tokenFile",
        "username",
        "exec",
        "auth-provider",
        "as",
    ];
    let given = |key: &&str| {
        body.get(*key)
            .is_some_and(|value| !value.is_null() && value.as_str() != Some(""))
    };
    OTHERS
        .into_iter()
        .filter(given)
        .map(str::to_owned)
        .collect()
}

fn text(value: &Value, key: &str) -> String {
    value
        .get(key)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn material(body: &Value, key: &str, folder: &GuestPath) -> Result<Material> {
    // Inline data wins over a file in client-go, but both together are refused earlier, see
    // `User::both_specified`.
    let data = text(body, &format!("{key}-data"));
    if !data.is_empty() {
        // Go's decoder skips line ends, which block scalars bring with them.
        let data: String = data
            .chars()
            .filter(|character| !matches!(character, '\r' | '\n'))
            .collect();
        // The decoder's own words quote a symbol, which may be a key's.
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(data.as_bytes())
            .map_err(|_| anyhow!("{key}-data is not base64"))?;
        return Ok(Material::Inline(bytes));
    }
    let file = text(body, key);
    Ok(match file.as_str() {
        "" => Material::None,
        file if file.starts_with('/') => Material::File(GuestPath::new(file)),
        file => Material::File(folder.join(file)),
    })
}
