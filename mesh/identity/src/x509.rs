//! Writes and signs certificates and requests: the parts of RFC 5280 that we use, nothing more.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use shoal_api::time::Timestamp;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::certificate::{CertificateInner, TbsCertificateInner, Version};
use x509_cert::der::asn1::{
    Any, BitString, GeneralizedTime, Ia5String, ObjectIdentifier, OctetString, SetOfVec, UtcTime,
    Utf8StringRef,
};
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::oid::db::rfc4519::{CN, O, OU};
use x509_cert::der::oid::db::rfc5280::{ID_KP_CLIENT_AUTH, ID_KP_SERVER_AUTH};
use x509_cert::der::oid::db::rfc5912::ECDSA_WITH_SHA_256;
use x509_cert::der::{DateTime, Decode as _, Encode};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages,
    SubjectAltName, SubjectKeyIdentifier,
};
use x509_cert::name::{Name, RelativeDistinguishedName};
use x509_cert::request::{CertReq, CertReqInfo};
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

use crate::key::Key;

/// Why writing cannot fail: all lengths are far below DER's limit of 256 MiB.
const SMALL: &str = "a certificate is small";

/// What a certificate is for.
pub(crate) enum Use<'a> {
    /// Signs others.
    Authority,
    /// Speaks TLS, on both ends, under these DNS names.
    Node { dns: [&'a str; 2] },
}

/// A certificate before it is signed.
pub(crate) struct Template<'a> {
    pub serial: [u8; 16],
    pub issuer: Name,
    /// The issuer's subject key identifier.
    pub issuer_key_id: Vec<u8>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub subject: Name,
    /// `SubjectPublicKeyInfo`.
    pub public_der: &'a [u8],
    pub usage: Use<'a>,
}

impl Template<'_> {
    /// Signs: the certificate's DER.
    pub(crate) fn sign(self, key: &Key) -> Vec<u8> {
        let public = SubjectPublicKeyInfoOwned::from_der(self.public_der)
            .expect("the public key was checked when it was read");
        let mut extensions = vec![
            extension(true, &constraints(&self.usage)),
            extension(true, &key_usage(&self.usage)),
            extension(false, &SubjectKeyIdentifier(octets(key_id(self.public_der)))),
            extension(false, &authority(self.issuer_key_id)),
        ];
        if let Use::Node { dns } = self.usage {
            let usages = ExtendedKeyUsage(vec![ID_KP_SERVER_AUTH, ID_KP_CLIENT_AUTH]);
            extensions.push(extension(false, &usages));
            let names = dns.iter().filter_map(|name| Ia5String::new(*name).ok());
            let names = SubjectAltName(names.map(GeneralName::DnsName).collect());
            extensions.push(extension(false, &names));
        }
        let tbs = TbsCertificateInner {
            version: Version::V3,
            serial_number: serial(self.serial),
            signature: algorithm(),
            issuer: self.issuer,
            validity: Validity {
                not_before: time(self.not_before),
                not_after: time(self.not_after),
            },
            subject: self.subject,
            subject_public_key_info: public,
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: Some(extensions),
        };
        let signature = bits(&key.sign(&der(&tbs)));
        let certificate: CertificateInner =
            CertificateInner { tbs_certificate: tbs, signature_algorithm: algorithm(), signature };
        der(&certificate)
    }
}

/// A request for a certificate, signed by its own key. It asks for no name: the cluster gives it.
pub(crate) fn request(key: &Key) -> Vec<u8> {
    let info = CertReqInfo {
        version: x509_cert::request::Version::V1,
        subject: Name::default(),
        public_key: SubjectPublicKeyInfoOwned::from_der(&key.public_der())
            .expect("our own public key can be read"),
        attributes: SetOfVec::default(),
    };
    let signature = bits(&key.sign(&der(&info)));
    der(&CertReq { info, algorithm: algorithm(), signature })
}

/// The name of a root.
pub(crate) fn root_name(common_name: &str) -> Name {
    name(&[(CN, common_name)])
}

/// The name of a node.
pub(crate) fn node_name(cluster_id: &str, role: &str, node_id: &str) -> Name {
    name(&[(O, cluster_id), (OU, role), (CN, node_id)])
}

/// RFC 7093, section 2, method 1: the leftmost 160 bits of SHA-256 over the key.
pub(crate) fn key_id(public_der: &[u8]) -> Vec<u8> {
    let digest = Sha256::digest(public_der);
    digest.iter().copied().take(20).collect()
}

/// ECDSA with SHA-256.
pub(crate) fn algorithm() -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid: ECDSA_WITH_SHA_256, parameters: None }
}

/// Instants from X.509; those after the year 2554 count as the last one that fits.
pub(crate) fn instant(time: Time) -> Timestamp {
    Timestamp(u64::try_from(time.to_unix_duration().as_nanos()).unwrap_or(u64::MAX))
}

/// DER of a thing.
pub(crate) fn der(thing: &impl Encode) -> Vec<u8> {
    thing.to_der().expect(SMALL)
}

fn name(parts: &[(ObjectIdentifier, &str)]) -> Name {
    let part = |(oid, text): &(ObjectIdentifier, &str)| {
        let text = Utf8StringRef::new(text).expect(SMALL);
        let value = Any::encode_from(&text).expect(SMALL);
        let pair = AttributeTypeAndValue { oid: *oid, value };
        RelativeDistinguishedName(SetOfVec::try_from(vec![pair]).expect("one is in order"))
    };
    x509_cert::name::RdnSequence(parts.iter().map(part).collect())
}

/// Whole seconds; UTCTime through 2049, as RFC 5280 §4.1.2.5 wants.
fn time(at: Timestamp) -> Time {
    let at = Duration::from_secs(at.nanos() / 1_000_000_000);
    let at = DateTime::from_unix_duration(at).expect("64 bits of nanoseconds end in 2554");
    match UtcTime::from_date_time(at) {
        Ok(time) => Time::UtcTime(time),
        Err(_) => Time::GeneralTime(GeneralizedTime::from_date_time(at)),
    }
}

/// Positive and always of 16 bytes: the two bits on top are set to 01.
fn serial(mut bytes: [u8; 16]) -> SerialNumber {
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::new(&bytes).expect("16 bytes are fewer than 20")
}

fn constraints(usage: &Use<'_>) -> BasicConstraints {
    BasicConstraints { ca: matches!(usage, Use::Authority), path_len_constraint: None }
}

fn key_usage(usage: &Use<'_>) -> KeyUsage {
    match usage {
        Use::Authority => KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign),
        Use::Node { .. } => KeyUsage(KeyUsages::DigitalSignature.into()),
    }
}

fn authority(key_id: Vec<u8>) -> AuthorityKeyIdentifier {
    AuthorityKeyIdentifier { key_identifier: Some(octets(key_id)), ..Default::default() }
}

fn extension<T: Encode + AssociatedOid>(critical: bool, value: &T) -> Extension {
    Extension { extn_id: T::OID, critical, extn_value: octets(der(value)) }
}

fn octets(bytes: Vec<u8>) -> OctetString {
    OctetString::new(bytes).expect(SMALL)
}

fn bits(bytes: &[u8]) -> BitString {
    BitString::from_bytes(bytes).expect(SMALL)
}
