//! Where callers come in, and what has to be said before others than this host's own processes can.
//!
//! Must never let a listener be reached from elsewhere by mistake: who may call there, and that it is or is not
//! encrypted, are two things that its owner says.

use std::net::{IpAddr, SocketAddr};

use culvert_hop::request::ForwardPolicy;
use culvert_ops::config::{Loaded, Source};
use culvert_ops::exit::{Exit, Quit};

use super::settings::{Raw, RawListener, RawTls};
use super::{Address, Listener, Tcp, TlsFiles, socket};
use crate::router::Select;

pub(super) fn listeners(loaded: &Loaded, raw: &Raw) -> Result<Vec<Listener>, Quit> {
    let mut listeners = Vec::new();
    let short_is_default = loaded.source("http.listen") == Source::Default;
    if raw.http.listener.is_empty() || !short_is_default {
        for text in &raw.http.listen {
            let address = address(loaded, "http.listen", text)?;
            if let Address::Tcp(at) = address {
                exposed(at, false, false, "a [[http.listener]] table with it")?;
            }
            listeners.push(plain(address));
        }
    }
    for (place, listener) in raw.http.listener.iter().enumerate() {
        listeners.push(long_form(loaded, &format!("http.listener[{place}]"), listener)?);
    }
    match twice(listeners.iter().map(|listener| &listener.address)) {
        Some(twice) => Err(loaded.wrong("http.listen", format_args!("{twice} is there twice")).into()),
        None => Ok(listeners),
    }
}

pub(super) fn tcp(loaded: &Loaded, raw: &Raw) -> Result<Vec<Tcp>, Quit> {
    let mut listeners = Vec::new();
    for (place, listener) in raw.tcp.iter().enumerate() {
        let key = |key: &str| format!("tcp[{place}].{key}");
        let Some(text) = &listener.listen else {
            return Err(loaded.wrong(&key("listen"), "a listener needs an address").into());
        };
        let address = address(loaded, &key("listen"), text)?;
        let Some(service) = &listener.service else {
            return Err(loaded.wrong(&key("service"), "a TCP listener needs a service").into());
        };
        let service = service.parse().map_err(|error| loaded.wrong(&key("service"), error))?;
        if let Address::Tcp(at) = address {
            exposed_tcp(at, listener.open, listener.cleartext)?;
        }
        listeners.push(Tcp { address, service, proxy_protocol: listener.proxy_protocol });
    }
    match twice(listeners.iter().map(|listener| &listener.address)) {
        Some(twice) => Err(loaded.wrong("tcp[0].listen", format_args!("{twice} is there twice")).into()),
        None => Ok(listeners),
    }
}

/// The listener that a service manager's socket is, where none is configured.
///
/// # Errors
/// 78 when it is not on loopback.
pub(crate) fn listener_of(address: Address) -> Result<Listener, Quit> {
    if let Address::Tcp(at) = address {
        exposed(at, false, false, "a [[http.listener]] table with this address")?;
    }
    Ok(plain(address))
}

/// A listener without a choice of its own. Only where no stranger reaches it.
fn plain(address: Address) -> Listener {
    Listener {
        address,
        select: Select::Host,
        forward: ForwardPolicy::Append,
        tls: None,
        proxy_protocol: false,
        identified: false,
        gateways: None,
        services: None,
    }
}

fn long_form(loaded: &Loaded, key: &str, raw: &RawListener) -> Result<Listener, Quit> {
    let wrong = |name: &str, what: &dyn std::fmt::Display| Quit::from(loaded.wrong(&format!("{key}.{name}"), what));
    let Some(text) = &raw.listen else { return Err(wrong("listen", &"a listener needs an address")) };
    let address = address(loaded, &format!("{key}.listen"), text)?;
    let tls = raw.tls.as_ref().map(|tls| files(loaded, key, tls)).transpose()?;
    if raw.open && raw.gateways.is_some() {
        return Err(wrong("gateways", &"either open = true or gateways: nobody is asked who he is where it is open"));
    }
    // On loopback and on a unix socket this host's own processes call: they are asked only where somebody is named.
    let mut identified = raw.gateways.is_some();
    if let Address::Tcp(at) = address
        && !is_loopback(at.ip())
    {
        exposed(at, tls.is_some(), raw.cleartext, "its [[http.listener]] table")?;
        identified |= !raw.open;
    }
    let gateways = raw.gateways.as_ref().map(|names| names.iter().map(|name| name.parse()).collect());
    let services = raw.services.as_ref().map(|globs| globs.iter().map(|glob| glob.parse()).collect());
    Ok(Listener {
        address,
        select: if raw.select.as_deref() == Some("header") { Select::Header } else { Select::Host },
        forward: match raw.forwarded.as_deref() {
            Some("replace") => ForwardPolicy::Replace,
            None if raw.open => ForwardPolicy::Replace,
            // Who connects is this host's, but the PROXY header names somebody else, whom nobody asked for a proof.
            None if raw.proxy_protocol && !identified => ForwardPolicy::Replace,
            Some(_) | None => ForwardPolicy::Append,
        },
        tls,
        proxy_protocol: raw.proxy_protocol,
        identified,
        gateways: Option::transpose(gateways)
            .map_err(|error: culvert_model::name::BadName| wrong("gateways", &error))?,
        services: Option::transpose(services)
            .map_err(|error: culvert_model::name::BadName| wrong("services", &error))?,
    })
}

pub(super) fn files(loaded: &Loaded, key: &str, raw: &RawTls) -> Result<TlsFiles, Quit> {
    match (&raw.cert, &raw.key) {
        (Some(cert), Some(own)) => {
            Ok(TlsFiles { cert: cert.clone(), key: own.clone(), client_ca: raw.client_ca.clone() })
        }
        (_, _) => Err(loaded.wrong(&format!("{key}.tls"), "cert and key are needed, and go together").into()),
    }
}

/// Refuses what others than this host's processes can reach in clear text, unless its owner said that this is meant.
fn exposed(at: SocketAddr, tls: bool, cleartext: bool, place: &str) -> Result<(), Quit> {
    if is_loopback(at.ip()) || tls || cleartext {
        return Ok(());
    }
    let message = format!("http listener {at} is not on loopback: what callers send and prove is not encrypted there");
    let hint = format!(
        "set tls = {{ cert, key }} or cleartext = true in {place}, and open = true if callers need no identity; or \
         listen on 127.0.0.1 or a unix socket"
    );
    Err(Quit::new(Exit::Config, message).hint(hint))
}

/// Raw bytes tell nobody who sends them.
fn exposed_tcp(at: SocketAddr, open: bool, cleartext: bool) -> Result<(), Quit> {
    let missing: Vec<&str> = [(open, "open = true"), (cleartext, "cleartext = true")]
        .into_iter()
        .filter_map(|(set, what)| (!set).then_some(what))
        .collect();
    if is_loopback(at.ip()) || missing.is_empty() {
        return Ok(());
    }
    let message = format!("tcp listener {at} is not on loopback: callers are neither known nor encrypted there");
    let hint = format!(
        "set {} in its [[tcp]] table if that is meant, or listen on 127.0.0.1 or a unix socket",
        missing.join(" and ")
    );
    Err(Quit::new(Exit::Config, message).hint(hint))
}

fn address(loaded: &Loaded, key: &str, text: &str) -> Result<Address, Quit> {
    match text.strip_prefix("unix:") {
        Some(path) => Ok(Address::Unix(path.into())),
        None => socket(loaded, key, text).map(Address::Tcp),
    }
}

fn twice<'a>(addresses: impl Iterator<Item = &'a Address> + Clone) -> Option<&'a Address> {
    let port_0 = |address: &Address| matches!(address, Address::Tcp(at) if at.port() == 0);
    addresses.clone().enumerate().find_map(|(place, one)| {
        (!port_0(one) && addresses.clone().skip(place + 1).any(|other| other == one)).then_some(one)
    })
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}
