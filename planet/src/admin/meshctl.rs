//! What meshctl says to a planet, in the words of the nodes' local socket: statements of the root, and
//! questions about what they are about.

use podmesh_proto::armor::Armor;
use podmesh_proto::error::DecodeError;
use podmesh_proto::local_api::{self, Failure, FailureCode};
use podmesh_proto::network::RootStatement;
use podmesh_proto::signed::Signed;

use super::{Request, Response};

/// The request in a line of meshctl's; `None` if the line is nothing of the kind.
pub(super) fn request(line: &str) -> Option<Result<Request, String>> {
    match serde_json::from_str(line).ok()? {
        local_api::Request::Statement { statement } => Some(
            text_form(&statement)
                .map(|statement| Request::Statement {
                    planet: None,
                    statement,
                })
                .map_err(|error| error.to_string()),
        ),
        local_api::Request::Network => Some(Ok(Request::Network)),
        local_api::Request::Registry => Some(Ok(Request::Registry)),
        _ => Some(Err(
            "a planet takes statements of the root and tells whom it knows; ask a node's meshd for the rest"
                .to_owned(),
        )),
    }
}

/// An answer as meshctl understands it.
pub(super) fn response(response: Response) -> local_api::Response {
    let failed = |code, message| {
        local_api::Response::Failed(Failure {
            code,
            message,
            next: None,
        })
    };
    match response {
        Response::Done { message } => local_api::Response::Done { message },
        Response::Failed {
            message,
            permission: true,
        } => failed(FailureCode::Permission, message),
        Response::Failed { message, .. } => failed(FailureCode::Failed, message),
        Response::Registry(registry) => local_api::Response::Registry(registry),
        Response::Network {
            statement,
            id,
            version,
        } => local_api::Response::Network {
            statement,
            id,
            version,
        },
        Response::Status(_) | Response::Backup { .. } => failed(
            FailureCode::Failed,
            "the planet answered another question".to_owned(),
        ),
    }
}

fn text_form(statement: &str) -> Result<String, DecodeError> {
    let statement = Signed::<RootStatement>::from_base64(statement)?;
    Armor::of(&statement)?.encode(&statement)
}

#[cfg(test)]
mod tests {
    use podmesh_proto::armor;
    use podmesh_proto::id::{NetworkId, TokenId};
    use podmesh_proto::key::SigningKey;
    use podmesh_proto::time::UnixSeconds;

    use super::*;

    #[test]
    fn a_statement_arrives_as_meshctl_signed_it() {
        let said = RootStatement::RevokeToken {
            network: NetworkId([1; 16]),
            token: TokenId([2; 16]),
            issued: UnixSeconds(3),
        };
        let signed = Signed::seal(&said, &SigningKey::from_seed([4; 32])).unwrap();
        let line = serde_json::to_string(&local_api::Request::Statement {
            statement: signed.to_base64().unwrap(),
        })
        .unwrap();
        let Some(Ok(Request::Statement { planet, statement })) = request(&line) else {
            panic!("not understood: {line}");
        };
        assert_eq!(planet, None);
        let arrived = armor::decode_statement(&statement).unwrap();
        assert_eq!(arrived.hash(), signed.hash());

        assert!(matches!(request(r#"{"request":"Status"}"#), Some(Err(_))));
        assert!(request(r#"{"request":"status"}"#).is_none());
        assert!(request("nonsense").is_none());
    }

    #[test]
    fn a_refusal_keeps_its_kind() {
        for (permission, code) in [
            (true, FailureCode::Permission),
            (false, FailureCode::Failed),
        ] {
            let message = "no".to_owned();
            let said = response(Response::Failed {
                message,
                permission,
            });
            assert!(matches!(said, local_api::Response::Failed(failure) if failure.code == code));
        }
    }
}
