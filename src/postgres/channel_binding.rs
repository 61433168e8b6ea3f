//! `tls-server-end-point` (RFC 5929): the hash of the server's certificate that SCRAM binds a login to.

use sha2::{Digest, Sha256, Sha384, Sha512};

/// Hash of the certificate, by the hash of its signature's algorithm; MD5 and SHA-1 count as SHA-256. `None` where the
/// algorithm has no hash of its own (Ed25519) or names it elsewhere (RSA-PSS): then there is no channel binding.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(match signature_hash(certificate)? {
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// `Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { OBJECT IDENTIFIER, .. }, .. }`
fn signature_hash(certificate: &[u8]) -> Option<Hash> {
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (_, after) = element(certificate, SEQUENCE)?;
    let (algorithm, _) = element(after, SEQUENCE)?;
    let (identifier, _) = element(algorithm, OBJECT_IDENTIFIER)?;
    match identifier {
        // 1.2.840.113549.1.1: md5, sha1, sha256, sha384, sha512 WithRSAEncryption
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, last] => match last {
            4 | 5 | 11 => Some(Hash::Sha256),
            12 => Some(Hash::Sha384),
            13 => Some(Hash::Sha512),
            _ => None,
        },
        // 1.2.840.10045.4.1: ecdsa-with-SHA1
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x01] => Some(Hash::Sha256),
        // 1.2.840.10045.4.3: ecdsa-with-SHA256, SHA384, SHA512
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, last] => match last {
            2 => Some(Hash::Sha256),
            3 => Some(Hash::Sha384),
            4 => Some(Hash::Sha512),
            _ => None,
        },
        _ => None,
    }
}

/// The content of the DER element that the bytes begin with, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let [found, first, rest @ ..] = bytes else { return None };
    if *found != tag {
        return None;
    }
    let (length, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let count = usize::from(*first & 0x7F);
        if count == 0 || count > 4 {
            return None;
        }
        let (digits, rest) = rest.split_at_checked(count)?;
        (digits.iter().fold(0usize, |length, digit| (length << 8) | usize::from(*digit)), rest)
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(oid: &[u8]) -> Vec<u8> {
        let mut algorithm = vec![0x06, oid.len() as u8];
        algorithm.extend(oid);
        // A tbsCertificate of 200 bytes has its length in two.
        let mut content = vec![0x30, 0x81, 200];
        content.extend([7; 200]);
        content.extend([0x30, algorithm.len() as u8]);
        content.extend(algorithm);
        let mut whole = vec![0x30, 0x82, (content.len() >> 8) as u8, content.len() as u8];
        whole.extend(content);
        whole
    }

    #[test]
    fn the_hash_is_that_of_the_signature() {
        let rsa = |last: u8| certificate(&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, last]);
        let ecdsa = |last: u8| certificate(&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, last]);
        for (der, expected) in [
            (rsa(5), Some(Hash::Sha256)),
            (rsa(11), Some(Hash::Sha256)),
            (rsa(12), Some(Hash::Sha384)),
            (rsa(13), Some(Hash::Sha512)),
            (rsa(10), None),
            (ecdsa(2), Some(Hash::Sha256)),
            (ecdsa(3), Some(Hash::Sha384)),
            (ecdsa(4), Some(Hash::Sha512)),
            (certificate(&[0x2B, 0x65, 0x70]), None),
        ] {
            assert_eq!(signature_hash(&der), expected);
        }
        assert_eq!(end_point(&rsa(12)).map(|hash| hash.len()), Some(48));
    }

    #[test]
    fn truncated_certificates_have_none() {
        let whole = certificate(&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 2]);
        for length in 0..whole.len() {
            assert_eq!(signature_hash(&whole[..length]), None);
        }
        assert_eq!(signature_hash(&[0x30, 0x84, 0xFF, 0xFF, 0xFF, 0xFF]), None);
        assert_eq!(signature_hash(&[0x30, 0x88, 0xFF]), None);
    }
}
