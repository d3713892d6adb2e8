//! One TLS stack (rustls on ring) for both sides, Kubernetes and etcd.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// How a server is trusted and what it is shown.
#[derive(Default)]
pub struct Tls {
    /// PEM certificates to trust; without them, the system's.
    pub ca: Option<Vec<u8>>,
    /// PEM certificate chain and private key to show.
    pub identity: Option<Identity>,
}

/// A client certificate: PEM certificate chain and PEM private key.
pub struct Identity {
    /// The chain, leaf first.
    pub certificate: Vec<u8>,
    /// PKCS#8, PKCS#1 or SEC1.
    pub key: Vec<u8>,
}

impl Tls {
    /// Builds the client side of a connection, speaking one of the ALPN `protocols`.
    ///
    /// # Errors
    /// Says which certificate or key could not be read.
    pub fn config(&self, protocols: &[&str]) -> anyhow::Result<Arc<ClientConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key }) => builder
                .with_client_auth_cert(
                    certificates(certificate).context("failed to read the client certificate")?,
                    PrivateKeyDer::from_pem_slice(key)
                        .context("failed to read the client key: no PEM private key in it")?,
                )
                .context("the client certificate and its key do not fit")?,
        };
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        Ok(Arc::new(config))
    }

    fn roots(&self) -> anyhow::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        if let Some(pem) = &self.ca {
            for certificate in certificates(pem).context("failed to read the CA certificates")? {
                roots
                    .add(certificate)
                    .context("failed to read the CA certificates")?;
            }
        } else {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                bail!("no CA certificate given, and the system has none");
            }
        }
        Ok(roots)
    }
}

/// Reads all certificates of a PEM text, at least one.
///
/// # Errors
/// When the text has none, or one that is broken.
pub fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() {
        bail!("no PEM certificate in it");
    }
    Ok(found)
}
