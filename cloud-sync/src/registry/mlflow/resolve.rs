//! Resolves an alias, a version or a model's name to versions; uses stages where the server is too old for aliases.

use std::cmp::Reverse;

use super::answers::{OneVersion, Versions};
use super::failure::{Answer, Failure, Kind};
use super::rest::Rest;
use crate::error::{Link, SyncError};
use crate::registry::{ModelReference, ModelVersion, Which};

/// Versions per response, and maximum number of responses.
const PAGE: &str = "200";
const MAX_PAGES: usize = 50;

pub(super) async fn resolve(rest: &Rest, reference: &ModelReference) -> Answer<Option<ModelVersion>> {
    let what = format!("look up {reference}");
    let name = ("name", reference.name.as_str());
    let found: Answer<OneVersion> = match &reference.which {
        Which::Alias(alias) => {
            let query = [name, ("alias", alias)];
            let found = rest.get_changed(&what, "registered-models/alias", &query).await;
            match found {
                Err(failure) if failure.kind == Kind::NoSuchCall => {
                    return by_stage(rest, reference, alias, failure).await;
                }
                found => found,
            }
        }
        // MLflow's versions are numbers; it reports anything else as an error.
        Which::Version(version) if version.parse::<u32>().is_err() => return Ok(None),
        Which::Version(version) => {
            rest.get_changed(&what, "model-versions/get", &[name, ("version", version)]).await
        }
    };
    match found {
        Ok(found) => Ok(Some(found.model_version.into())),
        Err(Failure { kind: Kind::Missing, .. }) => Ok(None),
        // MLflow's response for a model without this alias.
        Err(Failure { kind: Kind::BadArgument, error, .. }) if error.in_full().contains("not found") => {
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

/// Servers before 2.3 have no aliases: a stage of that name is used note_fallback.
async fn by_stage(
    rest: &Rest,
    reference: &ModelReference,
    alias: &str,
    no_aliases: Failure,
) -> Answer<Option<ModelVersion>> {
    let what = format!("look up {reference} by stage");
    let name = ("name", reference.name.as_str());
    let stage = match alias.to_ascii_lowercase().as_str() {
        "champion" | "production" => Some("Production"),
        "challenger" | "staging" => Some("Staging"),
        "archived" => Some("Archived"),
        _ => None,
    };
    let call = "registered-models/get-latest-versions";
    let found: Versions =
        match rest.get(&what, call, &[name, ("stages", stage.unwrap_or("Production"))]).await {
            Ok(found) => found,
            Err(Failure { kind: Kind::Missing, .. }) => return Ok(None),
            // It does not have this call either: it is not MLflow.
            Err(Failure { kind: Kind::NoSuchCall, .. }) => return Err(no_aliases),
            Err(failure) => return Err(failure),
        };
    if stage.is_none() {
        let text = format!(
            "cannot {what}: this MLflow is older than 2.3 and has stages only: \
             follow @production (or @champion), @staging or @archived, or pin a version"
        );
        return Err(SyncError::permanent(Link::Mlflow, text).into());
    }
    let newest = found.model_versions.into_iter().max_by_key(|found| found.version.parse::<u32>().ok());
    Ok(newest.map(|found| {
        let mut found = ModelVersion::from(found);
        found.aliases.push(alias.to_owned());
        found
    }))
}

/// All versions of a model, newest first.
pub(super) async fn versions(rest: &Rest, name: &str) -> Answer<Vec<ModelVersion>> {
    let what = format!("list the versions of {name}");
    if name.contains(['\'', '"', '`', '\\']) {
        let text = format!("cannot {what}: the name has a quote or a backslash");
        return Err(SyncError::permanent(Link::Mlflow, text).into());
    }
    let filter = format!("name='{name}'");
    let (mut versions, mut next) = (Vec::new(), String::new());
    for _ in 0..MAX_PAGES {
        let mut query = vec![("filter", filter.as_str()), ("max_results", PAGE)];
        if !next.is_empty() {
            query.push(("page_token", &next));
        }
        let page: Versions = rest.get(&what, "model-versions/search", &query).await?;
        versions.extend(page.model_versions.into_iter().map(ModelVersion::from));
        next = page.next_page_token.unwrap_or_default();
        if next.is_empty() {
            versions.sort_by_cached_key(|version| Reverse(version.version.parse::<u64>().ok()));
            return Ok(versions);
        }
    }
    let text = format!("cannot {what}: there are more than {}", versions.len());
    Err(SyncError::permanent(Link::Mlflow, text).into())
}
