//! Whether a private key really is a certificate's.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P521_SHA512_ASN1, RSA_PKCS1_2048_8192_SHA256,
    UnparsedPublicKey, VerificationAlgorithm,
};

use crate::pki::certificate::Certificate;
use crate::pki::key::{Algorithm, PrivateKey};

/// What is signed to try a key out. Nobody else is asked to accept the signature, so it need not be new each time.
const MESSAGE: &[u8] = b"rescue: proof that the private key of this certificate is on the disk";

/// Whether `key` makes signatures that `certificate` verifies. A PEM block names its public key beside the private one, and a crafted
/// one may name somebody else's: so the key is tried, not asked.
pub fn proves(key: &PrivateKey, certificate: &Certificate) -> bool {
    if !certificate.matches(key) {
        return false;
    }
    let algorithm: &dyn VerificationAlgorithm = match key.algorithm() {
        Algorithm::Rsa(_) => &RSA_PKCS1_2048_8192_SHA256,
        Algorithm::P256 => &ECDSA_P256_SHA256_ASN1,
        Algorithm::P384 => &ECDSA_P384_SHA384_ASN1,
        Algorithm::P521 => &ECDSA_P521_SHA512_ASN1,
    };
    let Ok(signature) = key.sign(MESSAGE) else { return false };
    UnparsedPublicKey::new(algorithm, &certificate.public_key).verify(MESSAGE, &signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::pem;

    /// A self-signed certificate of `key`.
    fn certificate(key: &PrivateKey) -> Certificate {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "x");
        let pem = key.to_pem().unwrap();
        let pair = rcgen::KeyPair::try_from(pem::blocks(pem.as_bytes())[0].der.clone()).unwrap();
        Certificate::from_der(parameters.self_signed(&pair).unwrap().der()).unwrap()
    }

    #[test]
    fn only_the_key_itself_proves_its_certificate() {
        for algorithm in [Algorithm::Rsa(2048), Algorithm::P256, Algorithm::P384, Algorithm::P521] {
            let (own, other) = (PrivateKey::generate(algorithm).unwrap(), PrivateKey::generate(algorithm).unwrap());
            let certificate = certificate(&own);
            assert!(proves(&own, &certificate), "{algorithm}");
            assert!(!proves(&other, &certificate), "{algorithm}");
        }
    }

    /// Another's public key written into the PEM of one's own private key.
    #[test]
    fn a_public_key_beside_another_s_private_one_proves_nothing() {
        let (own, other) =
            (PrivateKey::generate(Algorithm::P256).unwrap(), PrivateKey::generate(Algorithm::P256).unwrap());
        let der = pem::blocks(own.to_pem().unwrap().as_bytes())[0].der.clone();
        let at = der.windows(65).position(|bytes| bytes == own.public_key()).unwrap();
        let mut crafted = der;
        crafted[at..at + 65].copy_from_slice(other.public_key());
        let crafted = pem::encode("EC PRIVATE KEY", &crafted);
        if let Ok(key) = PrivateKey::from_pem(crafted.as_bytes()) {
            assert!(!proves(&key, &certificate(&other)));
        }
    }
}
