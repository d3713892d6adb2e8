//! What a run may do, from the model's own truth: the tables of the design, written once more without
//! a look at the program's planner.

use std::collections::{BTreeMap, BTreeSet};

use super::world::{DEFINITION, Flags, Job, Pod, Proxy, Record, State, Url, Want, wants};

/// One write that was seen.
pub type Op = (String, Option<String>);

/// One run, as the model knows it.
pub struct Run<'r> {
    pub proxy: Proxy,
    pub prefix: &'r str,
    pub job: Job,
    pub flags: Flags,
    pub completed_listed: bool,
    /// All pods of the job's cluster when they were listed.
    pub pods: &'r [Pod],
    /// Namespaces whose list came back empty, whatever was there (`*` for the list of all).
    pub emptied: BTreeSet<&'r str>,
    /// Namespaces that were listed again without selectors, and whether that was answered.
    pub second: BTreeMap<String, bool>,
    /// The store when it was listed.
    pub read: &'r State,
}

/// What the truth says of an entry that its job does not want at its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It may go at once.
    Proved,
    /// It may go if few go this way: the pod is alive.
    Alive,
    /// The same: the pod is not in the selection, and nobody looked further.
    Unseen,
    /// It may go if somebody Ready stays.
    NotReady,
    /// It may not go.
    Held,
}

impl Run<'_> {
    fn list_of(&self, namespace: &str) -> Option<&str> {
        let name = self.job.namespaces.map_or("*", |_| namespace);
        self.emptied.get(name).copied()
    }

    /// The pods of its lists, as they were served.
    pub fn seen(&self) -> Vec<&Pod> {
        self.visible(true)
    }

    fn visible(&self, with_faults: bool) -> Vec<&Pod> {
        let visible = |pod: &&Pod| {
            self.job.covers(pod.namespace)
                && (!with_faults || self.list_of(pod.namespace).is_none())
                && self.job.tier.is_none_or(|tier| tier == pod.tier)
                && (self.completed_listed || !pod.completed())
        };
        self.pods.iter().filter(visible).collect()
    }

    /// Those, and the pods of the second look.
    fn known(&self) -> Vec<&Pod> {
        let mut known = self.seen();
        for pod in self.pods {
            let looked = self.second.get(pod.namespace) == Some(&true) && !pod.completed();
            if looked && !known.contains(&pod) {
                known.push(pod);
            }
        }
        known
    }

    /// Whether the list that should show this namespace's pods showed none at all.
    fn empty_list(&self, namespace: &str) -> bool {
        let seen = self.seen();
        match self.job.namespaces {
            None => seen.is_empty(),
            Some(_) => !seen.iter().any(|pod| pod.namespace == namespace),
        }
    }

    fn is_ours(&self, record: &Record) -> bool {
        record.mark.as_ref().is_some_and(|mark| {
            mark.owner == self.job.owner
                && mark.scope == self.job.scope(self.proxy)
                && self.job.covers(&mark.namespace)
        })
    }

    /// Whether this run takes the entry over.
    fn is_adopted(&self, record: &Record, wanted: &BTreeSet<Url>) -> bool {
        match &record.mark {
            None => {
                self.flags.adopt_unmarked && record.url.is_some_and(|url| wanted.contains(&url))
            }
            Some(mark) => {
                self.flags.adopt_scope && mark.owner == self.job.owner && !self.is_ours(record)
            }
        }
    }

    fn is_valid(&self, backend: &str, state: &State) -> bool {
        let key = self.proxy.definition_key(self.prefix, backend);
        let valid = match self.proxy {
            Proxy::Vulcand => DEFINITION,
            Proxy::Traefik => backend,
        };
        state.get(&key).is_some_and(|found| found.value == valid)
    }

    /// Whether a backend gets nothing from this run, and loses only what is dead.
    fn is_frozen(&self, backend: &str, after: &State) -> bool {
        let defined = self.is_valid(backend, self.read) || self.is_valid(backend, after);
        let others = self.read.iter().any(|(key, record)| {
            let mark = record.mark.as_ref();
            mark.is_some_and(|mark| mark.owner != self.job.owner)
                && self.proxy.backend_of(self.prefix, key).as_deref() == Some(backend)
        });
        !defined || others && !self.flags.share
    }

    /// What the entry's pod says, as far as it is known.
    fn fate(&self, record: &Record, adopted: bool, urls_left: &BTreeSet<Url>) -> Fate {
        if record.url.is_some_and(|url| urls_left.contains(&url)) {
            return Fate::Proved;
        }
        let Some(mark) = &record.mark else {
            return Fate::Held;
        };
        let known = self.known();
        let ip = record.url.map(|url| url.ip);
        let own = |pod: &Pod| {
            pod.namespace == mark.namespace
                && match &mark.pod {
                    Some(name) => pod.name == *name,
                    None => ip.is_some() && pod.ip == ip && !pod.completed(),
                }
        };
        // Without names, of several at one address the liveliest stands for all.
        let pod = known
            .iter()
            .filter(|pod| own(pod))
            .max_by_key(|pod| (pod.live(), !pod.terminating && !pod.completed()));
        if let Some(pod) = pod
            && ip.is_some()
            && pod.ip == ip
        {
            return match pod {
                _ if pod.terminating || pod.completed() => Fate::Proved,
                _ if pod.live() => Fate::Alive,
                _ => Fate::NotReady,
            };
        }
        if adopted {
            return Fate::Held;
        }
        let reused = known.iter().any(|other| {
            other.live() && !other.host && ip.is_some() && other.ip == ip && !own(other)
        });
        // Listed, and elsewhere or nowhere.
        if reused || pod.is_some() {
            return Fate::Proved;
        }
        if self.empty_list(&mark.namespace) && !self.flags.allow_empty {
            return Fate::Held;
        }
        if self.job.tier.is_none() {
            return Fate::Proved;
        }
        let nobody = || {
            let mut pods = self.pods.iter();
            !pods.any(|pod| pod.namespace == mark.namespace && !pod.completed())
        };
        match self.second.get(&mark.namespace) {
            Some(true) if nobody() && !self.flags.allow_empty => Fate::Held,
            Some(true) => Fate::Proved,
            Some(false) | None => Fate::Unseen,
        }
    }

    /// What it wants, by backend and key; several servers may want one key.
    pub fn wanted(&self) -> BTreeMap<String, BTreeMap<String, Vec<Want>>> {
        let mut wanted = BTreeMap::<_, BTreeMap<_, Vec<_>>>::new();
        for want in wants(self.seen(), &self.job, self.proxy, self.prefix) {
            let backend = wanted.entry(want.backend.clone()).or_default();
            backend.entry(want.key.clone()).or_default().push(want);
        }
        wanted
    }

    /// Judges what a run wrote, in order, upon what it read. `whole` is a run that got to its end and
    /// met nobody: then everything it should have done must be done.
    ///
    /// Returns the store as it is afterwards, as far as the run has its way.
    pub fn judge(&self, ops: &[Op], whole: bool) -> Result<State, String> {
        let wanted = self.wanted();
        let mut after = self.read.clone();
        let mut backends = BTreeSet::new();
        for key in self.read.keys() {
            backends.extend(self.proxy.backend_of(self.prefix, key));
        }
        backends.extend(wanted.keys().cloned());
        // What is written must be what somebody wants, or a definition that was asked for.
        for (key, value) in ops {
            if after.get(key).map(|record| &record.value) == value.as_ref() {
                return Err(format!("a write that changes nothing: {key}"));
            }
            let Some(value) = value else {
                if self.proxy.backend_of(self.prefix, key).is_none() {
                    return Err(format!("removed a key that is no server: {key}"));
                }
                after.remove(key);
                continue;
            };
            let candidates = wanted
                .values()
                .filter_map(|backend| backend.get(key))
                .flatten();
            let mut candidates = candidates.filter(|want| want.record.value == *value);
            let record = match candidates.next() {
                Some(want) => want.record.clone(),
                None => self.definition(key, value, &wanted, &after)?,
            };
            after.insert(key.clone(), record);
        }
        let nothing = BTreeMap::new();
        // Counted as the flag counts: what goes, and what would be held.
        let mut lifted = 0;
        let mut allowed = Vec::new();
        for backend in &backends {
            let wanted = wanted.get(backend).unwrap_or(&nothing);
            let judged = self.backend(backend, wanted, &after, whole)?;
            lifted += judged.0;
            allowed.extend(judged.1);
        }
        if !allowed.is_empty() && self.flags.allow.is_none_or(|most| lifted > most) {
            return Err(format!("done without proof:\n  {}", allowed.join("\n  ")));
        }
        self.on_the_way(ops, &after)?;
        Ok(after)
    }

    fn definition(
        &self,
        key: &str,
        value: &str,
        wanted: &BTreeMap<String, BTreeMap<String, Vec<Want>>>,
        state: &State,
    ) -> Result<Record, String> {
        let defines = |backend: &&String| self.proxy.definition_key(self.prefix, backend) == key;
        let Some(backend) = wanted.keys().find(defines) else {
            return Err(format!("wrote what no pod wants: {key} = {value}"));
        };
        let bleeds = |other: &str| {
            other != backend && (other.starts_with(backend.as_str()) || backend.starts_with(other))
        };
        let there = self.read.keys().filter_map(|key| {
            let rest = key.strip_prefix(self.prefix)?.strip_prefix("/backends/")?;
            rest.split('/').next()
        });
        if self.proxy == Proxy::Traefik
            || !self.flags.create
            || value != DEFINITION
            || state.contains_key(key)
        {
            return Err(format!(
                "defined what was not to be defined: {key} = {value}"
            ));
        }
        if let Some(other) = there
            .chain(wanted.keys().map(String::as_str))
            .find(|id| bleeds(id))
        {
            return Err(format!("defined {backend}, which would bleed with {other}"));
        }
        Ok(Record {
            value: value.to_owned(),
            mark: None,
            url: None,
        })
    }

    /// Judges one backend. Returns how many deletes and held changes were made, and those among them
    /// that only `--allow-deletes` allows.
    #[expect(clippy::too_many_lines, reason = "one table of the design, row by row")]
    fn backend(
        &self,
        backend: &str,
        wanted: &BTreeMap<String, Vec<Want>>,
        after: &State,
        whole: bool,
    ) -> Result<(usize, Vec<String>), String> {
        let of = |state: &State| {
            let own =
                |key: &&String| self.proxy.backend_of(self.prefix, key).as_deref() == Some(backend);
            state
                .iter()
                .filter(|(key, _)| own(key))
                .map(|(key, record)| (key.clone(), record.clone()))
                .collect::<State>()
        };
        let (read, left) = (of(self.read), of(after));
        let urls = wanted.values().flatten().filter_map(|want| want.record.url);
        let urls = urls.collect::<BTreeSet<_>>();
        let ours = |record: &Record| self.is_ours(record) || self.is_adopted(record, &urls);
        let owned = read.values().filter(|record| ours(record)).count();
        let frozen = self.is_frozen(backend, after);
        // URLs that this job's own entries have in the end, and are to have.
        let settled = |(key, record): (&String, &Record)| {
            let candidates = wanted.get(key)?;
            let right = candidates.iter().any(|want| want.record.url == record.url);
            record.url.filter(|_| right && self.is_ours(record))
        };
        let own_left = left.iter().filter_map(settled).collect::<BTreeSet<_>>();

        let mut fates = BTreeMap::new();
        let mut living = Vec::new();
        for (key, record) in read.iter().filter(|(_, record)| ours(record)) {
            let Some(candidates) = wanted.get(key) else {
                let adopted = !self.is_ours(record);
                fates.insert(key, self.fate(record, adopted, &own_left));
                continue;
            };
            // Of several that want the key the one whose URL is there keeps it.
            let same_url = |want: &&Want| want.record.url == record.url;
            if candidates.iter().any(|want| same_url(&want)) {
                continue;
            }
            let same_pod = |want: &&Want| {
                let old = record.mark.as_ref();
                let pod = |mark: &super::world::Mark| {
                    mark.pod.clone().map(|pod| (mark.namespace.clone(), pod))
                };
                let old = old.and_then(pod);
                old.is_none() || old == want.record.mark.as_ref().and_then(pod)
            };
            let ip = |record: &Record| record.url.map(|url| url.ip);
            let same = |want: &&Want| ip(&want.record) == ip(record) && same_pod(want);
            if record.url.is_some() && candidates.iter().any(|want| same(&want)) {
                living.push(key);
            }
        }
        let weak = |fate: &Fate| matches!(fate, Fate::Alive | Fate::Unseen);
        // A run that only adds lets nothing go.
        let deletes = !self.flags.upsert_only;
        let unproved = fates.values().filter(|fate| deletes && weak(fate)).count();
        let going = unproved + living.len();
        let most = going >= 2 && going * 2 > owned;
        let ready = left.iter().any(|(key, record)| {
            record.url.is_some() && !matches!(fates.get(key), Some(Fate::NotReady | Fate::Proved))
        });

        let mut lifted = 0;
        let mut allowed = Vec::new();
        for (key, record) in &read {
            let new = left.get(key);
            if new.map(|new| &new.value) == Some(&record.value) {
                continue;
            }
            let ill = |what: &str| {
                Err(format!(
                    "{what}: {key}\n  it was {}\n  it is {new:?}",
                    record.value
                ))
            };
            if !ours(record) {
                return ill("a foreign or out of scope entry was changed");
            }
            let Some(new) = new else {
                lifted += 1;
                if wanted.contains_key(key) {
                    return ill("removed a server that is wanted");
                }
                let fate = fates[key];
                match fate {
                    Fate::Proved => {}
                    _ if frozen => return ill("removed from a backend that loses nothing"),
                    _ if self.flags.upsert_only => {}
                    Fate::Alive if !most => {}
                    // The last ones are looked for without selectors first.
                    Fate::Unseen if !most && ready => {}
                    Fate::NotReady if ready || self.flags.strict => {}
                    // What stays by a hold that is lifted counts as Ready in the plan.
                    Fate::NotReady if self.flags.allow.is_some() && going > 0 => {}
                    Fate::NotReady => return ill("no Ready server was left in the backend"),
                    Fate::Alive | Fate::Unseen | Fate::Held => allowed.push(format!(
                        "removed {key} ({fate:?}, {going} of {owned} go so), it was {}",
                        record.value
                    )),
                }
                if self.flags.upsert_only {
                    return ill("removed by a run that only adds");
                }
                continue;
            };
            if frozen {
                return ill("updated in a backend that gets nothing");
            }
            if new.url == record.url && new.mark == record.mark {
                return ill("a needless write");
            }
            if most && living.contains(&key) {
                lifted += 1;
                allowed.push(format!("changed {key}, {going} of {owned} change or go so"));
            } else if !self.is_ours(record)
                && !living.contains(&key)
                && record
                    .url
                    .is_some_and(|url| new.url != Some(url) && !own_left.contains(&url))
            {
                lifted += 1;
                allowed.push(format!("an adopted entry gave up its address: {key}"));
            }
        }
        let created = left.keys().find(|key| !read.contains_key(*key));
        if let Some(key) = created
            && frozen
        {
            return Err(format!("created in a backend that gets nothing: {key}"));
        }
        if whole && !frozen {
            self.is_done(&read, &left, wanted, &fates, &living, most)?;
        }
        Ok((lifted, allowed))
    }

    /// Whether a whole run did all that it should: creates are never held, and what is proved goes.
    fn is_done(
        &self,
        read: &State,
        left: &State,
        wanted: &BTreeMap<String, Vec<Want>>,
        fates: &BTreeMap<&String, Fate>,
        living: &[&String],
        most: bool,
    ) -> Result<(), String> {
        for (key, candidates) in wanted {
            let found = left.get(key);
            let served = candidates
                .iter()
                .any(|want| found.is_some_and(|found| found.url == want.record.url));
            let foreign = read.get(key).is_some_and(|record| !self.is_ours(record));
            let held = living.contains(&key) && most;
            if !served && !foreign && !held {
                return Err(format!("wanted and not served: {key}, there is {found:?}"));
            }
        }
        if self.flags.upsert_only {
            return Ok(());
        }
        for (key, fate) in fates {
            // What was settled by the second look is proved in the plan only if it was asked for.
            if *fate == Fate::Proved && left.contains_key(*key) {
                return Err(format!("proved to be dead, and still there: {key}"));
            }
        }
        Ok(())
    }

    /// At every point on the way: puts before deletes, nobody gone in between, nobody's backend empty.
    fn on_the_way(&self, ops: &[Op], after: &State) -> Result<(), String> {
        let backend = |key: &str| self.proxy.backend_of(self.prefix, key);
        let truth = Run {
            emptied: BTreeSet::new(),
            second: BTreeMap::new(),
            read: self.read,
            ..*self
        };
        let wanted = truth.wanted();
        let urls = |state: &BTreeMap<String, Option<Url>>| {
            let mut urls = BTreeMap::<String, BTreeSet<Url>>::new();
            for (key, url) in state {
                if let (Some(backend), Some(url)) = (backend(key), url) {
                    urls.entry(backend).or_default().insert(*url);
                }
            }
            urls
        };
        let plain = |state: &State| {
            let pairs = state.iter().map(|(key, record)| (key.clone(), record.url));
            pairs.collect::<BTreeMap<_, _>>()
        };
        let (first, last) = (urls(&plain(self.read)), urls(&plain(after)));
        let mut state = plain(self.read);
        let mut losing = BTreeSet::new();
        for (key, value) in ops {
            let Some(backend) = backend(key) else {
                continue;
            };
            if value.is_some() {
                if losing.contains(&backend) {
                    return Err(format!("a put after a delete in its backend: {key}"));
                }
                state.insert(key.clone(), after.get(key).and_then(|record| record.url));
            } else {
                losing.insert(backend.clone());
                state.remove(key);
            }
            let now = urls(&state).remove(&backend).unwrap_or_default();
            let (Some(first), last) = (first.get(&backend), last.get(&backend)) else {
                continue;
            };
            let gone = first
                .iter()
                .find(|url| last.is_some_and(|last| last.contains(url)) && !now.contains(url));
            // Two entries that swap addresses cannot be changed without a gap.
            let swap = value.is_some() && self.read.contains_key(key);
            let brought_back = |url: &&Url| {
                let mut ops = ops.iter().filter(|(key, _)| !self.read.contains_key(key));
                ops.any(|(key, _)| after.get(key).is_some_and(|new| new.url == Some(**url)))
            };
            if let Some(url) = gone.filter(|url| !swap || brought_back(url)) {
                return Err(format!("{url} was out of {backend} for a while, at {key}"));
            }
            // A user may disarm the rule, and what is dead goes also where nothing may be put.
            let told = self.flags.allow_empty || self.flags.allow.is_some();
            let excused = told && !self.emptied.is_empty() || self.is_frozen(&backend, after);
            // Where somebody else has the key, the pod that wants it cannot be served.
            let free = |key: &String| self.read.get(key).is_none_or(|record| self.is_ours(record));
            let wanted = wanted
                .get(&backend)
                .is_some_and(|wanted| wanted.keys().any(free));
            if now.is_empty() && wanted && !excused {
                return Err(format!(
                    "{backend} was left empty while a live pod wants it, at {key}"
                ));
            }
        }
        Ok(())
    }
}
