//! Templates of backend and server ids, such as `{namespace}.{name}.svc`.

use std::fmt;

use leon::Item;

/// A template, checked: every field it names is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    source: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(Field),
}

/// What a template can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// `{namespace}`: the pod's namespace.
    Namespace,
    /// `{name}`: the backend's name, from annotation or label.
    Name,
    /// `{pod}`: the pod's name.
    Pod,
    /// `{ip}`: the address that is published.
    Ip,
    /// `{port}`: the port that is published, a number.
    Port,
    /// `{label:KEY}`: a label of the pod.
    Label(String),
    /// `{annotation:KEY}`: an annotation of the pod.
    Annotation(String),
}

impl Field {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "namespace" => Self::Namespace,
            "name" => Self::Name,
            "pod" => Self::Pod,
            "ip" => Self::Ip,
            "port" => Self::Port,
            _ => match text.split_once(':')? {
                ("label", key) if !key.is_empty() => Self::Label(key.to_owned()),
                ("annotation", key) if !key.is_empty() => Self::Annotation(key.to_owned()),
                _ => return None,
            },
        })
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace => f.write_str("{namespace}"),
            Self::Name => f.write_str("{name}"),
            Self::Pod => f.write_str("{pod}"),
            Self::Ip => f.write_str("{ip}"),
            Self::Port => f.write_str("{port}"),
            Self::Label(key) => write!(f, "{{label:{key}}}"),
            Self::Annotation(key) => write!(f, "{{annotation:{key}}}"),
        }
    }
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// A sentence for the usage message, when it is malformed or names an unknown field.
    pub fn parse(source: &str) -> Result<Self, String> {
        let template = leon::Template::parse(source).map_err(|error| {
            let text = error.to_string();
            format!(
                "not a template: {}",
                text.lines().next().unwrap_or("malformed")
            )
        })?;
        let part = |item: &Item| {
            match item {
            Item::Text(text) => Ok(Part::Text((*text).to_owned())),
            Item::Key(key) => Field::parse(key).map(Part::Field).ok_or_else(|| {
                format!(
                    "unknown field `{{{key}}}`: templates know {{namespace}} {{name}} {{pod}} {{ip}} \
                     {{port}} {{label:KEY}} {{annotation:KEY}}"
                )
            }),
        }
        };
        let parts = template
            .items
            .iter()
            .map(part)
            .collect::<Result<Vec<_>, _>>()?;
        if parts.is_empty() {
            return Err("an empty template makes no id".to_owned());
        }
        Ok(Self {
            source: source.to_owned(),
            parts,
        })
    }

    /// Whether ids of two namespaces can never be the same: the template begins with `{namespace}`
    /// and a character that no namespace contains.
    #[must_use]
    pub fn separates_namespaces(&self) -> bool {
        matches!(
            self.parts.as_slice(),
            [Part::Field(Field::Namespace), Part::Text(text), ..] if text.starts_with(['.', '_', ':'])
        )
    }

    /// The fields it names.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &Field> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Field(field) => Some(field),
        })
    }

    /// Fills in the template. `write` appends the text of a field, if the pod has one.
    ///
    /// # Errors
    /// The field that has no text, or an empty one.
    pub fn render(&self, write: impl Fn(&Field, &mut String)) -> Result<String, &Field> {
        let mut out = String::with_capacity(self.source.len() + 16);
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Field(field) => {
                    let before = out.len();
                    write(field, &mut out);
                    if out.len() == before {
                        return Err(field);
                    }
                }
            }
        }
        Ok(out)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_known_or_refused() {
        let all = "{namespace}{name}{pod}{ip}{port}{label:app.kubernetes.io/name}{annotation:a/b}";
        let template = Template::parse(all).expect("known");
        assert_eq!(template.to_string(), all);
        for bad in [
            "",
            "{x}",
            "{label:}",
            "{annotation:}",
            "{label}",
            "{",
            "}",
            "{}",
        ] {
            assert!(Template::parse(bad).is_err(), "{bad:?} is no template");
        }
        let error = Template::parse("{node}").expect_err("unknown");
        assert!(error.starts_with("unknown field `{node}`"), "{error}");
        assert!(!error.contains('\n'));
    }

    #[test]
    fn namespaces_are_separated_by_what_no_namespace_contains() {
        for (text, separated) in [
            ("{namespace}.{name}", true),
            ("{namespace}_{name}", true),
            ("{namespace}:{name}", true),
            ("{namespace}-{name}", false),
            ("{namespace}{name}", false),
            ("{name}.{namespace}", false),
            ("{namespace}", false),
            ("x{namespace}.{name}", false),
        ] {
            let template = Template::parse(text).expect(text);
            assert_eq!(template.separates_namespaces(), separated, "{text}");
        }
    }

    #[test]
    fn an_empty_field_makes_no_id() {
        let template = Template::parse("{namespace}.{label:team}.svc").expect("a template");
        let with = |team: &'static str| {
            template.render(move |field, out| {
                out.push_str(match field {
                    Field::Namespace => "shop",
                    _ => team,
                });
            })
        };
        assert_eq!(with("red"), Ok("shop.red.svc".to_owned()));
        assert_eq!(with(""), Err(&Field::Label("team".to_owned())));
    }
}
