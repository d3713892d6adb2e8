//! One TLS stack (rustls on ring) for both sides, Kubernetes and etcd.

use std::io::ErrorKind;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// How a server is trusted and what it is shown.
#[derive(Default)]
pub struct Tls {
    /// PEM certificates to trust; without them, the system's.
    pub ca: Option<Vec<u8>>,
    /// PEM certificate chain and private key to show.
    pub identity: Option<Identity>,
    /// Trust whatever the server shows.
    pub insecure: bool,
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
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let builder = if self.insecure {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        } else {
            builder.with_root_certificates(self.roots()?)
        };
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

/// Takes any certificate; signatures of the handshake are checked all the same.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Reads all certificates of a PEM text, at least one.
///
/// # Errors
/// When the text has none, or one that is broken.
pub(crate) fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() {
        bail!("no PEM certificate in it");
    }
    Ok(found)
}

/// What went wrong in a handshake, and the way out, in words.
#[must_use]
pub(crate) fn handshake_problem(error: &std::io::Error) -> String {
    use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(problem)) => match problem {
            // Another CA of the same name shows as a bad signature.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is signed by a CA that is not trusted: give the right CA"
                    .to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("its certificate is for another name: {problem}")
            }
            _ => format!("its certificate is not valid: {problem}"),
        },
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "it does not speak TLS: use `http://`".to_owned()
        }
        Some(Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::HandshakeFailure,
        )) => format!("it refused our client certificate, or wants one: {error}"),
        _ if matches!(
            error.kind(),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
        ) =>
        {
            "it closed the connection during the TLS handshake, as servers do that want a client \
             certificate they know, or that do not speak TLS (then use `http://`)"
                .to_owned()
        }
        Some(error) => format!("TLS failed: {error}"),
        None => format!("the connection failed: {error}"),
    }
}

/// What it means that a server ended a connection right after the handshake, in words.
#[must_use]
pub(crate) fn hung_up(error: &std::io::Error) -> Option<String> {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    )
    .then(|| {
        format!(
            "it closed the connection in or after the TLS handshake, as servers do that want a \
             client certificate they know, or that do not speak TLS (then use `http://`): {error}"
        )
    })
}
