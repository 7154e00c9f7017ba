//! Two nginxes, plain or with TLS 1.3 between them; and the one nginx in front of a WireGuard tunnel.

use anyhow::Result;
use culvert_lab::Namespace;
use culvert_lab::nginx::Nginx;

use super::{Ends, Peer, Ports, Program};
use crate::site::{FETCH, PRIVATE, Site, UPLOAD};

/// What every nginx here has in common: nothing goes to disk, connections are kept.
const COMMON: &str = "proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $http_host; \
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_max_temp_file_size 0; \
    proxy_request_buffering off; keepalive_timeout 600;";

pub(super) async fn two(name: &str, site: &Site, tls: bool, ports: Ports) -> Result<Peer> {
    let (scheme, listen_flags) = if tls { ("https", " ssl") } else { ("http", "") };
    let (cert, key) = site.certificate()?;
    let tls_server = format!(
        "ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.3; \
         ssl_conf_command Ciphersuites TLS_AES_256_GCM_SHA384;",
        cert.display(),
        key.display()
    );
    let tls_client = format!(
        "proxy_ssl_protocols TLSv1.3; proxy_ssl_verify on; proxy_ssl_name vpc; proxy_ssl_server_name on; \
         proxy_ssl_trusted_certificate {};",
        cert.display()
    );
    let port = ports.0;
    let private = Nginx::start(
        Some(&site.private),
        format!("{PRIVATE}:{port}").parse()?,
        &format!(
            "{COMMON} {}\n{}\n{}",
            if tls { tls_server.as_str() } else { "" },
            proxy(&[&format!("{PRIVATE}:{port}{listen_flags}")], "fetch", "http", &format!("127.0.0.1:{FETCH}")),
            proxy(
                &[&format!("{PRIVATE}:{}{listen_flags}", port + 1)],
                "upload",
                "http",
                &format!("127.0.0.1:{UPLOAD}")
            ),
        ),
    )
    .await?;
    let toward = [format!("{PRIVATE}:{port}"), format!("{PRIVATE}:{}", port + 1)];
    let settings = if tls { tls_client.as_str() } else { "" };
    let gateway = front(&site.gateway, &ports, settings, scheme, &toward).await?;
    Peer::at(name, &ports, Ends { gateway: vec![Program::Nginx(gateway)], private: vec![Program::Nginx(private)] })
}

/// The gateway's nginx: files, uploads, and files by HTTP/2, toward two places.
pub(super) async fn front(
    namespace: &Namespace,
    ports: &Ports,
    settings: &str,
    scheme: &str,
    [fetch, upload]: &[String; 2],
) -> Result<Nginx> {
    let local = |place: u16| format!("127.0.0.1:{}", ports.0 + place);
    let http2 = format!("{} http2", local(2));
    let text = format!(
        "{COMMON} {settings}\n{}\n{}",
        proxy(&[&local(0), &http2], "fetch", scheme, fetch),
        proxy(&[&local(1)], "upload", scheme, upload),
    );
    Nginx::start(Some(namespace), local(0).parse()?, &text).await
}

fn proxy(listens: &[&str], name: &str, scheme: &str, to: &str) -> String {
    let mut text = format!("upstream {name} {{ server {to}; keepalive 300; keepalive_requests 1000000; }}\n");
    for listen in listens {
        text += &format!("server {{ listen {listen} backlog=4096; location / {{ proxy_pass {scheme}://{name}; }} }}\n");
    }
    text
}
