//! A small blocking HTTPS client of one connection, for tests that must know to the byte what a server said before it
//! died. It takes any certificate: the servers are the tests' own.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use serde_json::Value;

/// A connection to an HTTPS server.
#[derive(Debug)]
pub struct Https {
    stream: StreamOwned<ClientConnection, TcpStream>,
    /// Read, but not yet used.
    buffer: Vec<u8>,
    headers: String,
}

/// An answer with its whole body.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Status code.
    pub code: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// The lines of a body that goes on.
#[derive(Debug)]
pub struct Lines {
    connection: Https,
    text: Vec<u8>,
}

/// How a body is delimited.
enum Framing {
    Length(usize),
    Chunked,
}

impl Https {
    /// Connects from the network namespace of the calling thread. `token`: of whom requests are.
    ///
    /// # Errors
    /// Nobody listens, or there is no answer for `limit`.
    pub fn connect(address: SocketAddr, token: &str, limit: Duration) -> io::Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
            .with_no_client_auth();
        let socket = TcpStream::connect_timeout(&address, limit)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(limit))?;
        let name = ServerName::from(address.ip());
        let tls = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let headers = format!("Host: {address}\r\nAuthorization: Bearer {token}\r\n");
        Ok(Self { stream: StreamOwned::new(tls, socket), buffer: Vec::new(), headers })
    }

    /// Sends a request and reads the whole answer. After an error the connection is of no more use.
    ///
    /// # Errors
    /// The connection ended; whether the request was carried out is unknown.
    pub fn request(&mut self, method: &str, target: &str, kind: &str, body: &[u8]) -> io::Result<Reply> {
        self.send(method, target, kind, body)?;
        let (code, framing) = self.head()?;
        let body = match framing {
            Framing::Length(length) => self.take(length)?,
            Framing::Chunked => {
                let mut whole = Vec::new();
                while let Some(chunk) = self.chunk()? {
                    whole.extend(chunk);
                }
                whole
            }
        };
        Ok(Reply { code, body })
    }

    /// GET of a body that goes on (a watch); an answer that is no success comes whole.
    ///
    /// # Errors
    /// The connection ended.
    pub fn follow(mut self, target: &str) -> io::Result<Result<Lines, Reply>> {
        self.send("GET", target, "application/json", &[])?;
        let (code, framing) = self.head()?;
        match framing {
            Framing::Chunked if code == 200 => Ok(Ok(Lines { connection: self, text: Vec::new() })),
            Framing::Chunked => {
                let body = self.chunk()?.unwrap_or_default();
                Ok(Err(Reply { code, body }))
            }
            Framing::Length(length) => Ok(Err(Reply { code, body: self.take(length)? })),
        }
    }

    fn send(&mut self, method: &str, target: &str, kind: &str, body: &[u8]) -> io::Result<()> {
        let head = format!(
            "{method} {target} HTTP/1.1\r\n{}Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.headers,
            body.len()
        );
        self.stream.write_all(&[head.as_bytes(), body].concat())?;
        self.stream.flush()
    }

    fn more(&mut self) -> io::Result<()> {
        let mut piece = [0; 16 * 1024];
        match self.stream.read(&mut piece)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                self.buffer.extend_from_slice(&piece[..n]);
                Ok(())
            }
        }
    }

    fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.more()?;
        }
        let rest = self.buffer.split_off(length);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    /// Up to and without an end mark.
    fn until(&mut self, end: &[u8]) -> io::Result<String> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|w| w == end) {
                let mut text = self.take(at + end.len())?;
                text.truncate(at);
                return String::from_utf8(text).map_err(io::Error::other);
            }
            self.more()?;
        }
    }

    fn head(&mut self) -> io::Result<(u16, Framing)> {
        let head = self.until(b"\r\n\r\n")?.to_ascii_lowercase();
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let code = code.ok_or_else(|| io::Error::other(format!("no HTTP: {head}")))?;
        let length = head.lines().find_map(|l| l.strip_prefix("content-length:"));
        let framing = match length.and_then(|l| l.trim().parse().ok()) {
            Some(length) => Framing::Length(length),
            None => Framing::Chunked,
        };
        Ok((code, framing))
    }

    /// The next chunk of a chunked body; `None` at its end.
    fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let size = self.until(b"\r\n")?;
        let length = usize::from_str_radix(&size, 16).map_err(io::Error::other)?;
        let mut chunk = self.take(length + 2)?;
        chunk.truncate(length);
        Ok((length > 0).then_some(chunk))
    }
}

impl Lines {
    /// The next line; `None` when the server ended the body.
    ///
    /// # Errors
    /// The connection ended within it.
    pub fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = self.text.iter().position(|b| *b == b'\n') {
                let rest = self.text.split_off(at + 1);
                let mut line = std::mem::replace(&mut self.text, rest);
                line.truncate(at);
                return Ok(Some(line));
            }
            match self.connection.chunk()? {
                Some(chunk) => self.text.extend(chunk),
                None => return Ok(None),
            }
        }
    }
}

/// Takes any server certificate.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
