//! An origin that does what a script says, byte for byte.

use std::future::Future;
use std::net::SocketAddr;

use culvert_ops::task::{Task, spawn};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// The origin; ends with this.
pub struct Scripted {
    /// Where it is.
    pub at: SocketAddr,
    _serves: Task<()>,
}

/// One connection to it.
pub struct Conn(pub TcpStream);

impl Scripted {
    /// Plays `script` on each connection, one after the other; the number counts them.
    pub async fn start<F, Playing>(script: F) -> Self
    where
        F: Fn(Conn, usize) -> Playing + Send + 'static,
        Playing: Future<Output = Option<()>> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let serves = spawn("test.origin", async move {
            for count in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                script(Conn(stream), count).await;
            }
        });
        Self { at, _serves: serves }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.at)
    }
}

impl Conn {
    /// The next request's head; none: the connection ended.
    pub async fn head(&mut self) -> Option<String> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.push(self.0.read_u8().await.ok()?);
        }
        String::from_utf8(bytes).ok()
    }

    /// So many bytes.
    pub async fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).await.ok()?;
        Some(bytes)
    }

    /// Writes.
    pub async fn say(&mut self, text: impl AsRef<[u8]>) -> Option<()> {
        self.0.write_all(text.as_ref()).await.ok()
    }

    /// Ends it with RST.
    pub fn reset(self) {
        self.0.set_zero_linger().unwrap();
    }
}
