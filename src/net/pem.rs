//! Certificates and keys in PEM files. Read as leniently as Go does for kubectl and etcdctl: keys by their
//! content, not their label, and broken blocks are skipped.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use log::info;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{CertificateError, Error};

/// A client certificate: PEM certificate chain and PEM private key.
pub struct Identity {
    /// The chain, leaf first.
    pub certificate: Vec<u8>,
    /// PKCS#8, PKCS#1 or SEC1.
    pub key: Vec<u8>,
}

/// One block of a PEM text.
struct Block<'t> {
    /// The text after `BEGIN`: `CERTIFICATE`.
    label: &'t str,
    /// Headers and base64.
    body: &'t str,
}

/// The blocks of a text. Skips text between them and a block without an end.
fn blocks(pem: &str) -> impl Iterator<Item = Block<'_>> {
    pem.split("-----BEGIN ").skip(1).filter_map(|text| {
        let (label, rest) = text.split_once("-----")?;
        let (body, _) = rest.split_once("-----END ")?;
        Some(Block { label, body })
    })
}

impl Block<'_> {
    fn is_private_key(&self) -> bool {
        self.label.ends_with("PRIVATE KEY")
    }

    fn is_encrypted(&self) -> bool {
        self.label.starts_with("ENCRYPTED") || self.body.contains("Proc-Type: 4,ENCRYPTED")
    }

    /// The decoded body; `None` if it is not base64.
    fn der(&self) -> Option<Vec<u8>> {
        let lines = self.body.lines().filter(|line| !line.contains(':'));
        let text = lines.flat_map(str::split_whitespace).collect::<String>();
        BASE64_STANDARD.decode(text).ok()
    }
}

/// Reads the certificates of a PEM text: at least one. Skips blocks that do not parse as one.
///
/// # Errors
/// When the text contains no certificate that can be read.
pub(crate) fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let text = String::from_utf8_lossy(pem);
    let mut found = Vec::new();
    let mut broken = 0;
    for block in blocks(&text).filter(|block| block.label == "CERTIFICATE") {
        let der = block.der().map(CertificateDer::from);
        match der.filter(is_certificate) {
            Some(der) => found.push(der),
            None => broken += 1,
        }
    }
    match (found.is_empty(), broken) {
        (true, 0) => bail!("it holds no PEM block `CERTIFICATE`"),
        (true, _) => bail!("none of its blocks `CERTIFICATE` can be read"),
        (false, 0) => {}
        (false, _) => info!("skipped {broken} certificates of a PEM file that cannot be read"),
    }
    Ok(found)
}

/// Whether these bytes parse as a certificate. X.509 version 1 counts: some Kubernetes distributions issue
/// such client certificates.
fn is_certificate(der: &CertificateDer<'_>) -> bool {
    match ParsedCertificate::try_from(der) {
        Ok(_) => true,
        Err(error) => is_version_1(&error),
    }
}

fn is_version_1(error: &Error) -> bool {
    // rustls has no error variant for it.
    matches!(error, Error::InvalidCertificate(CertificateError::Other(other))
        if other.to_string().contains("UnsupportedCertVersion"))
}

/// Parses a client certificate and its key, and checks that they match.
///
/// # Errors
/// The one that cannot be read and why, or that they do not match.
pub(crate) fn certified(
    identity: &Identity,
    provider: &CryptoProvider,
) -> anyhow::Result<CertifiedKey> {
    let Identity { certificate, key } = identity;
    let chain = certificates(certificate).context("failed to read the client certificate")?;
    let key = private_key(key, provider).context("failed to read the client key")?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        // rustls cannot parse version 1: the server finds out whether the key matches.
        Err(error) if is_version_1(&error) => Ok(certified),
        Err(Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
            bail!("the client key is not the key of the client certificate")
        }
        Ok(()) | Err(Error::InconsistentKeys(_)) => Ok(certified),
        Err(error) => Err(error).context("failed to read the client certificate"),
    }
}

fn private_key(pem: &[u8], provider: &CryptoProvider) -> anyhow::Result<Arc<dyn SigningKey>> {
    let text = String::from_utf8_lossy(pem);
    let block = blocks(&text).find(Block::is_private_key);
    let block = block.context("it holds no PEM block `PRIVATE KEY`")?;
    if block.is_encrypted() {
        bail!(
            "it is encrypted: decrypt it, for example with `openssl pkey -in KEY -out PLAIN_KEY`"
        );
    }
    let der = block.der().context("its PEM block is not valid base64")?;
    let kinds = [
        PrivateKeyDer::from(PrivatePkcs8KeyDer::from(der.clone())),
        PrivatePkcs1KeyDer::from(der.clone()).into(),
        PrivateSec1KeyDer::from(der).into(),
    ];
    let mut keys = kinds
        .into_iter()
        .filter_map(|key| provider.key_provider.load_private_key(key).ok());
    keys.next().context(
        "it is not a key that can be used: RSA of 2048 to 8192 bits, ECDSA on P-256, P-384 or P-521, or \
         Ed25519, in PKCS#8, PKCS#1 or SEC1",
    )
}
