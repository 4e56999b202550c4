//! Certificate signing requests (PKCS#10) for a kubelet's client certificate, and for nothing else:
//! what asks for more is refused, as the API server's signer
//! `kubernetes.io/kube-apiserver-client-kubelet` refuses it (pkg/apis/certificates/helpers.go,
//! ValidateKubeletClientCSR).

use anyhow::{Context as _, Result, anyhow, bail};
use aws_lc_rs::signature::UnparsedPublicKey;
use der::asn1::BitStringRef;
use der::{Encode, Tag, TagNumber};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::kubelet::{NODE_PREFIX, is_node_name};
use super::x509::certificate::{key_algorithm, printable, verification};
use super::x509::der_parts::{sequence, wrap};
use super::x509::issue::{signature_algorithm, subject};
use super::x509::key::{Algorithm, PrivateKey};
use super::x509::pem;

/// The group of all kubelets.
pub const NODES: &str = "system:nodes";

const LABEL: &str = "CERTIFICATE REQUEST";

/// A request that is signed with its own key and asks for nothing but a kubelet's client
/// certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRequest {
    /// The node's name.
    pub node: String,
    /// SubjectPublicKeyInfo, DER.
    pub public_key_info: Vec<u8>,
    /// Kind and size of the key.
    pub algorithm: Algorithm,
}

/// A request for this node, signed with its key, as PEM.
pub fn make(node: &str, key: &PrivateKey) -> Result<String> {
    let attributes = wrap(
        Tag::ContextSpecific {
            constructed: true,
            number: TagNumber(0),
        },
        &[],
    )?;
    let name = subject(&[NODES], &format!("{NODE_PREFIX}{node}"))?;
    let info = sequence(&[&0u8.to_der()?, &name, &key.public_key_info(), &attributes])?;
    let signature = key
        .sign(&info)
        .context("signing the request with its own key")?;
    let signature = BitStringRef::from_bytes(&signature)?.to_der()?;
    let request = sequence(&[&info, &signature_algorithm(key.algorithm())?, &signature])?;
    Ok(pem::encode(LABEL, &request))
}

/// Reads a request and proves it: one request, signed with the key that it names, group
/// `system:nodes` and the name of a node as its only names, no extensions that would say more.
pub fn read(text: &[u8]) -> Result<NodeRequest> {
    let blocks = pem::blocks(text);
    let [block] = blocks.as_slice() else {
        bail!("it holds {} PEM blocks, not one request", blocks.len())
    };
    if block.label != LABEL {
        bail!(
            "it holds a {}, not a certificate request",
            printable(&block.label)
        );
    }
    let (rest, request) = X509CertificationRequest::from_der(&block.der)
        .map_err(|_| anyhow!("the request is damaged: it is not PKCS#10"))?;
    if !rest.is_empty() {
        bail!("the request is damaged: {} bytes follow it", rest.len());
    }
    let key = &request.certification_request_info.subject_pki;
    let bits = key.subject_public_key.data.as_ref();
    let algorithm = key_algorithm(key).context("its key is of a kind that is not supported")?;
    if request.signature_value.unused_bits != 0 {
        bail!("the request is damaged: its signature is no run of bytes");
    }
    let oid = request.signature_algorithm.algorithm.to_id_string();
    let verification = verification(&oid, Some(algorithm))
        .context("its signature or key is of a kind that is not supported")?;
    UnparsedPublicKey::new(verification, bits)
        .verify(
            request.certification_request_info.raw,
            &request.signature_value.data,
        )
        .map_err(|_| {
            anyhow!(
                "its signature does not hold: it was changed, or made without the key that it names"
            )
        })?;
    if request
        .certification_request_info
        .iter_attributes()
        .next()
        .is_some()
    {
        bail!(
            "it asks for extensions or carries attributes; a kubelet's client certificate takes \
             none"
        );
    }
    let node = node_name(&request)?;
    Ok(NodeRequest {
        node,
        public_key_info: key.raw.to_vec(),
        algorithm,
    })
}

/// Exactly the organization `system:nodes` and the common name of a node. Any other organization is
/// a group that RBAC looks at: `system:masters` would make an administrator.
fn node_name(request: &X509CertificationRequest<'_>) -> Result<String> {
    let name = &request.certification_request_info.subject;
    let shown = printable(&name.to_string());
    let organizations: Vec<&str> = name
        .iter_organization()
        .filter_map(|value| value.as_str().ok())
        .collect();
    let common_names: Vec<&str> = name
        .iter_common_name()
        .filter_map(|value| value.as_str().ok())
        .collect();
    let only = name.iter_attributes().count() == 2;
    match (organizations.as_slice(), common_names.as_slice(), only) {
        ([NODES], [common_name], true) => match common_name
            .strip_prefix(NODE_PREFIX)
            .filter(|node| is_node_name(node))
        {
            Some(node) => Ok(node.to_owned()),
            None => bail!("it asks for {shown}: that is not the name of a node"),
        },
        _ => bail!("it asks for {shown}: only O={NODES}, CN={NODE_PREFIX}NAME is signed here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_makes_and_never_what_was_changed() {
        for algorithm in [Algorithm::P256, Algorithm::P384, Algorithm::Rsa(2048)] {
            let key = PrivateKey::generate(algorithm).unwrap();
            let text = make("worker1", &key).unwrap();
            let request = read(text.as_bytes()).unwrap();
            assert_eq!(
                (request.node.as_str(), request.algorithm),
                ("worker1", algorithm)
            );
            assert_eq!(request.public_key_info, key.public_key_info());
            let der = pem::blocks(text.as_bytes()).remove(0).der;
            for at in (0..der.len()).step_by(3) {
                let mut damaged = der.clone();
                damaged[at] ^= 1;
                // Only what the signature covers is ever used; the algorithm's name beside it is
                // spelled leniently.
                let again = read(pem::encode(LABEL, &damaged).as_bytes());
                assert!(
                    again.is_err() || again.is_ok_and(|again| again == request),
                    "{algorithm} byte {at}"
                );
                let _ = read(pem::encode(LABEL, &der[..at]).as_bytes());
            }
        }
    }

    #[test]
    fn signs_nothing_but_nodes() {
        let key = PrivateKey::generate(Algorithm::P256).unwrap();
        for node in ["", "Worker", "a/b", "a b"] {
            assert!(
                read(make(node, &key).unwrap().as_bytes()).is_err(),
                "{node:?}"
            );
        }
        assert!(read(b"").is_err());
        assert!(read(pem::encode("CERTIFICATE", b"x").as_bytes()).is_err());
    }
}
