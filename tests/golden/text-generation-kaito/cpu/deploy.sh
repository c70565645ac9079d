#!/usr/bin/env bash
# Builds the image of this folder, and has KAITO serve it in the cluster of kubectl's context. Safe to run again.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by another shell, as `sh deploy.sh` does
set -euo pipefail
here=${BASH_SOURCE[0]}
while [[ -L $here ]]; do # called through a link: its files lie where it leads
    target=$(readlink "$here")
    [[ $target == /* ]] && here=$target || here=$(dirname "$here")/$target
done
cd "$(dirname "$here")"

WORKSPACE=my-text-generation

usage() {
    cat <<'USAGE'
Usage: ./deploy.sh [--namespace NAME] [--context NAME] [--timeout SECONDS] [--dry-run]

--dry-run prints the commands and runs none of them.
USAGE
}

scope=()
patience=2170
dry_run=false
while (($#)); do
    case $1 in
    -n | --namespace | --context | --timeout)
        if (($# < 2)); then
            echo "deploy.sh: $1 needs a value" >&2
            exit 2
        fi
        case $1 in
        -n) scope+=(--namespace "$2") ;;
        --timeout) patience=$2 ;;
        *) scope+=("$1" "$2") ;;
        esac
        shift 2
        ;;
    --dry-run)
        dry_run=true
        shift
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        echo "deploy.sh: unknown option $1" >&2
        usage >&2
        exit 2
        ;;
    esac
done

step() { printf '# %s\n' "$*"; }

refuse() {
    printf 'deploy.sh: %s; nothing was uploaded. Generate the bundle again, or restore its files.\n' "$*" >&2
    exit 1
}

# SHA-256 of standard input or of files, as `hash  path`.
sha256() {
    if command -v sha256sum >/dev/null; then
        sha256sum "$@"
    else
        shasum -a 256 "$@"
    fi
}

# Refuses unless every file is as manifest.json lists it, and nothing else is in the folders that are uploaded.
verify() {
    local LC_ALL=C listed known found other
    export LC_ALL
    listed=$(sed -n 's/^    "\(.*\)": "\([0-9a-f]\{64\}\)",\{0,1\}$/\2  \1/p' manifest.json | sed 's/\\"/"/g' | sort)
    grep -qF "\"bundle\": \"$(printf '%s\n' "$listed" | sha256 | cut -c 1-64)\"" manifest.json ||
        refuse "manifest.json is not as it was generated"
    other=$(find . ! -type d ! -type f)
    [[ -z $other ]] || refuse "a bundle holds no links, devices or pipes: ${other%%$'\n'*}"
    known=$(printf '%s\n' "$listed" | cut -c 67- | sort)
    found=$(find . -type f | sed 's|^\./||' | sort)
    other=$(comm -13 <(printf '%s\n' "$found") <(printf '%s\n' "$known"))
    [[ -z $other ]] || refuse "a file is missing: ${other%%$'\n'*}"
    other=$(comm -23 <(printf '%s\n' "$found") <(printf '%s\n' "$known") | sed -n '/^code\//p;/^model\//p;/^environment\//p')
    [[ -z $other ]] || refuse "a file was added: ${other%%$'\n'*}"
    found=$(printf '%s\n' "$known" | tr '\n' '\0' | (export -f sha256; xargs -0 bash -c 'sha256 -- "$@"' sha256) | sort)
    other=$(comm -13 <(printf '%s\n' "$found") <(printf '%s\n' "$listed") | cut -c 67-)
    [[ -z $other ]] || refuse "a file was edited: ${other%%$'\n'*}"
}

verify

if ! $dry_run; then
    for program in az kubectl; do
        command -v "$program" >/dev/null || {
            echo "deploy.sh: $program is missing" >&2
            exit 1
        }
    done
fi

# The image of this folder; its tag is the hash of what it is built of, so that one that is there is the right one.
run() {
    if $dry_run; then
        local line
        printf -v line '%q ' "$@"
        echo "${line% }"
    else
        "$@"
    fi
}

# True if the registry has the image; a dry run shows the question and takes the answer to be no.
has_image() {
    if $dry_run; then
        run "$@"
        return 1
    fi
    "$@" >/dev/null 2>&1
}

step "image mine.azurecr.io/models/text:606a2e1f0db4"
has_image az acr repository show --name mine --image models/text:606a2e1f0db4 --output none ||
    run az acr build --registry mine --image models/text:606a2e1f0db4 \
        --file environment/Dockerfile --only-show-errors .

step "workspace $WORKSPACE"
run kubectl apply ${scope[@]+"${scope[@]}"} --filename workspace.yml

step "wait for it, a new node included"
run kubectl wait ${scope[@]+"${scope[@]}"} "workspace/$WORKSPACE" --for=condition=WorkspaceSucceeded "--timeout=${patience}s"

step "done; ask it, and prove it alike, with:"
echo "kubectl port-forward ${scope[*]-} service/$WORKSPACE 8080:80"
echo "curl --json @requests/sample.json http://127.0.0.1:8080/score"
