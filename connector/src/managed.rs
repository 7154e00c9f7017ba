//! Services that the relay's operator manages, beside those that this connector's own declares.
//!
//! A name that is declared here wins. Must never take anything from a relay but a name, an origin, a Host and a check's
//! path, nor an origin that `[allow] origins` does not permit: such a one is shown with its reason and never dialled.

use std::sync::Arc;

use culvert_model::control::{MAX_MESSAGE_BYTES, ManagedService, RefusedService};
use culvert_model::name::ServiceName;
use culvert_origin::allow::Allow;
use culvert_origin::connect::Admission;
use culvert_origin::origin::Origin;
use culvert_origin::origins::Entry;
use culvert_origin::service::{BadHost, HostPolicy, Service, health_path};
use culvert_origin::tls::{ClientTls, Files};

/// Managed services that are taken; the rest is refused.
const AT_MOST: usize = 256;
/// Announcements of all services fit one message: what is declared goes first.
const ANNOUNCED_BYTES: usize = MAX_MESSAGE_BYTES - 4096;
/// What a service takes in it beside its name.
const BYTES_BESIDE: usize = 200;
/// What refusals may take in the message that tells them, and one of them.
const REFUSALS_BYTES: usize = MAX_MESSAGE_BYTES / 2;
const WHY_AT_MOST: usize = 300;
/// The longest text of a field.
const LONGEST: usize = 1024;

/// What this connector declares and allows, and what its relays want of it.
#[derive(Debug, Default)]
pub struct Managed {
    declared: Vec<Service>,
    allow: Arc<Allow>,
    wanted: Vec<ManagedService>,
}

/// Why a managed service is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("this connector declares {0} itself")]
    Declared(ServiceName),
    #[error("this connector has no room for more services")]
    TooMany,
    #[error("{0} is longer than {LONGEST} characters")]
    TooLong(&'static str),
    #[error("{0}")]
    Origin(#[from] culvert_origin::origin::BadOrigin),
    #[error("host: {0}")]
    Host(#[from] BadHost),
    #[error("health path: {0}")]
    Path(&'static str),
    #[error("a tcp:// origin gets no requests: it has neither a Host nor a health path")]
    NotOfTcp,
    #[error("TLS: {0}")]
    Tls(#[from] culvert_origin::tls::BadTls),
}

impl Managed {
    /// Takes this connector's own configuration.
    pub fn configure(&mut self, declared: Vec<Service>, allow: Allow) {
        self.declared = declared;
        if *self.allow != allow {
            self.allow = Arc::new(allow);
        }
    }

    /// Takes a relay's list, the whole of it; whether it is another one than before.
    pub fn want(&mut self, services: Vec<ManagedService>) -> bool {
        let is_news = self.wanted != services;
        self.wanted = services;
        is_news
    }

    /// Every service that there is now, and those of the relays that are refused, with the reason in words. What the
    /// allow-list forbids is in both: whoever asks for it is told so.
    pub fn decide(&self) -> (Vec<Entry>, Vec<RefusedService>) {
        let mut entries: Vec<Entry> = self.declared.iter().cloned().map(Entry::from).collect();
        let mut refused = Vec::new();
        let takes = |service: &Service| {
            let balance = service.balance.as_ref().map_or(0, |balance| balance.to_string().len());
            service.name.as_str().len() + balance + BYTES_BESIDE
        };
        let mut room = ANNOUNCED_BYTES.saturating_sub(self.declared.iter().map(takes).sum());
        for (place, wanted) in self.wanted.iter().enumerate() {
            let made = self.service(wanted).and_then(|service| {
                let left = room.checked_sub(takes(&service)).filter(|_| place < AT_MOST);
                room = left.ok_or(Refused::TooMany)?;
                Ok(service)
            });
            match made {
                Ok(service) => {
                    if let Err(outside) = self.allow.may_permit(&service.origin) {
                        refused.push(RefusedService { name: wanted.name.clone(), why: outside.to_string() });
                    }
                    // The same name twice: the last counts.
                    entries.retain(|entry| entry.service.name != service.name);
                    entries.push(Entry { service, admission: Admission::Within(self.allow.clone()) });
                }
                Err(why) => refused.push(RefusedService { name: wanted.name.clone(), why: why.to_string() }),
            }
        }
        (entries, refused)
    }

    /// As many refusals as one message holds, each in so many words.
    pub fn told(refused: &[RefusedService]) -> Vec<RefusedService> {
        let mut room = REFUSALS_BYTES;
        let short = |one: &RefusedService| RefusedService {
            name: one.name.clone(),
            why: one.why.chars().take(WHY_AT_MOST).collect(),
        };
        let fits = |one: &RefusedService| {
            let bytes = serde_json::to_vec(one).map_or(usize::MAX, |json| json.len() + 1);
            room = room.saturating_sub(bytes);
            room > 0
        };
        refused.iter().map(short).take_while(fits).collect()
    }

    fn service(&self, wanted: &ManagedService) -> Result<Service, Refused> {
        if self.declared.iter().any(|declared| declared.name == wanted.name) {
            return Err(Refused::Declared(wanted.name.clone()));
        }
        let ManagedService { name, origin, host, health_path: path } = wanted;
        let long = |text: &Option<String>| text.as_ref().is_some_and(|text| text.len() > LONGEST);
        for (what, is_long) in
            [("the origin", origin.len() > LONGEST), ("the host", long(host)), ("the health path", long(path))]
        {
            if is_long {
                return Err(Refused::TooLong(what));
            }
        }
        let origin: Origin = origin.parse()?;
        if origin.is_tcp() && (host.is_some() || path.is_some()) {
            return Err(Refused::NotOfTcp);
        }
        let tls = if origin.is_tls() { Some(ClientTls::new(Files::default())?) } else { None };
        let mut service = Service::new(name.clone(), origin, tls);
        if let Some(host) = host {
            service.host = host.parse::<HostPolicy>()?;
        }
        if let Some(path) = path {
            service.health.path = Some(health_path(path).map_err(Refused::Path)?);
        }
        Ok(service)
    }
}

#[cfg(test)]
mod tests {
    use culvert_model::control::{Announce, AnnouncedService, Health, ToRelay, encode};

    use super::*;

    fn managed(declared: &[&str], allow: &[&str]) -> Managed {
        let declared = declared
            .iter()
            .map(|name| Service::new(name.parse().unwrap(), "http://declared.internal:80".parse().unwrap(), None));
        let allow = allow.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let mut managed = Managed::default();
        managed.configure(declared.collect(), Allow::parse(&allow).unwrap());
        managed
    }

    fn wanted(name: &str, origin: &str) -> ManagedService {
        ManagedService { name: name.parse().unwrap(), origin: origin.to_owned(), host: None, health_path: None }
    }

    fn decided(managed: &Managed) -> (Vec<String>, Vec<String>) {
        let (entries, refused) = managed.decide();
        let shown = |entry: &Entry| format!("{} {}", entry.service.name, entry.service.origin);
        let why = |refused: &RefusedService| format!("{}: {}", refused.name, refused.why);
        (entries.iter().map(shown).collect(), refused.iter().map(why).collect())
    }

    #[test]
    fn nothing_is_reached_for_a_relay_by_default() {
        let mut managed = managed(&["orders"], &[]);
        assert!(managed.want(vec![wanted("billing", "http://billing.internal:8080")]));
        let (entries, refused) = managed.decide();
        assert_eq!(refused.len(), 1);
        assert!(refused[0].why.contains("[allow] origins is empty"), "{}", refused[0].why);
        let billing = entries.iter().find(|entry| entry.service.name.as_str() == "billing").unwrap();
        let Admission::Within(allow) = &billing.admission else { panic!("a relay's service is not declared") };
        assert!(!allow.permits(&billing.service.origin, Some("10.0.0.1:8080".parse().unwrap())));
    }

    #[test]
    fn what_the_list_permits_is_served_and_a_declared_name_wins() {
        let mut managed = managed(&["orders"], &["http://*.internal:8080"]);
        assert!(managed.want(vec![
            wanted("billing", "http://billing.internal:8080"),
            wanted("orders", "http://orders.internal:8080"),
            wanted("out", "http://elsewhere.example:8080"),
        ]));
        let (served, refused) = decided(&managed);
        assert_eq!(
            served,
            [
                "orders http://declared.internal:80",
                "billing http://billing.internal:8080",
                "out http://elsewhere.example:8080"
            ]
        );
        assert_eq!(
            refused,
            [
                "orders: this connector declares orders itself",
                "out: http://elsewhere.example:8080 is not within this connector's [allow] origins"
            ]
        );
        assert!(!managed.want(managed.wanted.clone()), "the same list is no news");
        managed.configure(Vec::new(), Allow::parse(&["*.example:8080".to_owned()]).unwrap());
        let (_, refused) = decided(&managed);
        assert!(refused.iter().all(|why| !why.starts_with("out") && !why.contains("itself")), "{refused:?}");
    }

    #[test]
    fn what_makes_no_service_is_refused_by_its_reason_and_the_rest_is_served() {
        let mut managed = managed(&[], &["*", "10.0.0.0/8"]);
        let with = |host: Option<&str>, path: Option<&str>, origin: &str| ManagedService {
            host: host.map(str::to_owned),
            health_path: path.map(str::to_owned),
            ..wanted("x", origin)
        };
        for (service, why) in [
            (with(None, None, "orders:8080"), "is not an origin"),
            (with(None, None, "http://u:p@a:1"), "no password"),
            (with(None, None, "ftp://a:1"), "not available"),
            (with(Some("a b"), None, "http://a:1"), "host: "),
            (with(None, Some("healthz"), "http://a:1"), "health path: "),
            (with(None, Some("/"), "tcp://a:1"), "neither a Host nor a health path"),
            (with(Some(&"h".repeat(LONGEST + 1)), None, "http://a:1"), "longer than"),
        ] {
            managed.want(vec![service, wanted("fine", "http://fine:1")]);
            let (served, refused) = decided(&managed);
            assert_eq!(served, ["fine http://fine:1"], "{refused:?}");
            assert!(refused.len() == 1 && refused[0].contains(why), "{refused:?}");
        }
        let many = (0..=AT_MOST).map(|number| wanted(&format!("s{number}"), "http://fine:1")).collect();
        managed.want(many);
        let (served, refused) = decided(&managed);
        assert_eq!((served.len(), refused.len()), (AT_MOST, 1));
    }

    #[test]
    fn whatever_a_relay_wants_what_is_announced_and_refused_fits_a_message_each_and_what_is_declared_stays() {
        let long = |number: usize| format!("{number:0>63}");
        let names: Vec<String> = (1000..1150).map(long).collect();
        let mut managed = managed(&names.iter().map(String::as_str).collect::<Vec<_>>(), &["10.0.0.0/8"]);
        let origin = format!("http://{}:1", "\"\u{1}".repeat(400));
        let services =
            (0..400).map(|number| wanted(&long(number), if number % 2 == 0 { "http://10.0.0.1:80" } else { &origin }));
        managed.want(services.collect());
        let (entries, refused) = managed.decide();
        let declared = entries.iter().filter(|entry| entry.admission == Admission::Declared).count();
        assert_eq!((declared, entries.len() + refused.len()), (150, 550));
        assert!(entries.len() > 150, "there is room for some");
        let services = entries.iter().map(|entry| AnnouncedService {
            name: entry.service.name.clone(),
            health: Health { up: false, reason: Some("origin_connect_timeout".to_owned()) },
            balance: None,
            timeouts: entry.service.timeouts.announced(),
            tcp: false,
            managed: true,
        });
        let announce = Announce { version: 1, program: "0.1.0".to_owned(), name: None, services: services.collect() };
        let mut bytes = Vec::new();
        encode(&ToRelay::Announce(announce), &mut bytes).expect("it is announced");
        let told = Managed::told(&refused);
        assert!(told.len() > 16);
        encode(&ToRelay::Managed { refused: told }, &mut bytes).expect("it is told");
    }
}
