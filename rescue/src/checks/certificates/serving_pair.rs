//! The kubelet's own serving pair is taken away where the kubelet could not load it.

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::change::{Change, Prepared};
use crate::finding::{Context, Remedy};
use crate::pki::kubelet_serving::OwnPair;

/// Takes the pair away, so that the kubelet makes a new one, in its own version's form, when it
/// starts.
#[derive(Debug)]
pub struct RemakeServingPair {
    /// The pair.
    pub pair: OwnPair,
    /// Whether it is only over: the kubelet starts with it all the same.
    pub is_only_expired: bool,
}

impl Remedy for RemakeServingPair {
    fn kind(&self) -> &'static str {
        "remake-kubelet-serving"
    }

    fn summary(&self) -> String {
        format!(
            "remove {} and its key, so that the kubelet makes a new pair when it starts",
            self.pair.certificate
        )
    }

    fn details(&self) -> Vec<String> {
        vec![
            "self-signed for a year, as the one before: the kubelet does so whenever neither file \
             is there"
                .to_owned(),
        ]
    }

    fn is_incidental(&self) -> bool {
        self.is_only_expired
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("path".to_owned(), json!(self.pair.certificate.to_string()));
        fields.insert("key_path".to_owned(), json!(self.pair.key.to_string()));
        fields
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let guest = context.guest;
        let there = [&self.pair.certificate, &self.pair.key]
            .into_iter()
            .filter(|path| guest.lstat(path).is_ok());
        let changes = there
            .map(|path| Ok(Change::remove(guest, path)?))
            .collect::<Result<Vec<_>>>()?;
        Ok(Prepared {
            changes,
            ..Prepared::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::bench::Bench;
    use crate::checks::certificates::CHECK;
    use crate::guest::GuestPath;
    use crate::node::Node;
    use crate::tree::MemoryTree;

    const CERTIFICATE: &str = "/var/lib/kubelet/pki/kubelet.crt";
    const KEY: &str = "/var/lib/kubelet/pki/kubelet.key";

    #[test]
    fn takes_both_away() {
        let guest = MemoryTree::new()
            .file(
                "/var/lib/kubelet/config.yaml",
                "kind: KubeletConfiguration\n",
            )
            .file(CERTIFICATE, "junk")
            .file(KEY, "junk")
            .into_guest();
        let remedy = RemakeServingPair {
            pair: OwnPair::of(&Node::read(&guest)).unwrap(),
            is_only_expired: false,
        };
        let after = Bench::new(CHECK).after(&guest, &remedy);
        assert!(!after.exists(&GuestPath::new(CERTIFICATE)) && !after.exists(&GuestPath::new(KEY)));
        assert_eq!(remedy.pair.fault(&after), None);
    }
}
