#!/bin/sh
# `docker compose up` runs this first. It stops with a message if the settings or the host can't work, and makes the secrets
# that don't exist yet. Each secret is in the volume of the service that needs it; client keys are kept as digests only.
#
#     docker compose run --rm setup key [NAME]      prints a new key for NAME (client); NAME's old keys no longer work
#     docker compose run --rm setup remove NAME     NAME's keys no longer work
set -eu
root=${ROOT:-} # set only in tests
keys=$root/run/prismoe/server/api_keys
metrics_key=$root/run/prismoe/prometheus/metrics_key
password=$root/run/prismoe/grafana/password

main() {
    case "$#${1:-}" in
        0)
            check_settings
            check_host
            make_secrets
            ;;
        1key) replace_key client client ;;
        2key)
            case "$2" in
                prometheus) replace_key prometheus metrics > "$metrics_key" ;;
                *) replace_key "$2" client ;;
            esac
            ;;
        2remove)
            keep_all_but "$2"
            mv "$keys.new" "$keys"
            ;;
        *) refuse "Give no arguments, or key [NAME], or remove NAME." ;;
    esac
}

refuse() {
    echo "$*" >&2
    exit 1
}

check_settings() {
    echo "$GPUS" | grep -Eqx '[1-9][0-9]*' || refuse "GPUS=$GPUS is not a number of GPUs. Give one like 1."
    echo "$RETENTION" | grep -Eqx '([0-9]+(ms|s|m|h|d|w|y))+' || refuse "RETENTION=$RETENTION is not a time. Give one like 30d."
    case "$MODEL" in
        "") return ;;
        /* | *..* | .* | "~"* | */ | *" "*)
            refuse "MODEL=$MODEL is not a name. Set CHECKPOINTS to the folder that has the model, and MODEL to the model's name in it." ;;
    esac
    if [ -d "$root/checkpoints/$MODEL" ]; then
        [ -r "$root/checkpoints/$MODEL/config.json" ] ||
            refuse "MODEL=$MODEL: the folder of that name in CHECKPOINTS=$CHECKPOINTS has no config.json that everyone can read."
    elif ! echo "$MODEL" | grep -Eqx '[[:alnum:]][[:alnum:]._-]*/[[:alnum:]._-]+'; then
        refuse "MODEL=$MODEL is neither a folder in CHECKPOINTS=$CHECKPOINTS nor a name on the Hugging Face Hub (OWNER/NAME). Set it to one of these."
    fi
}

# A container sees the host's kernel, and so the version of its NVIDIA driver, except on WSL, which uses Windows's driver.
check_host() {
    driver=$root/proc/driver/nvidia/version
    if [ "$DEVICE" = cpu ] || grep -qi microsoft "$root/proc/version"; then
        return
    elif [ ! -r "$driver" ]; then
        refuse "This host has no NVIDIA GPU, or its driver is not loaded. With a GPU, install NVIDIA's driver 580 or newer and" \
            "its Container Toolkit. Without one, serve on the CPU: docker compose --file compose.yaml --file cpu.yaml up"
    fi
    release=$(sed -n 's/^NVRM.* \([0-9][0-9]*\)\.[0-9.]* .*/\1/p' "$driver")
    if [ "${release:-0}" -lt 580 ]; then
        echo "This host's NVIDIA driver is older than 580, which CUDA 13 needs: update it if the server does not start."
    fi
    echo 'If Docker reports that there is no device driver "nvidia", install the NVIDIA Container Toolkit and restart Docker.'
}

make_secrets() {
    [ -s "$password" ] || random > "$password"
    if [ ! -s "$metrics_key" ] || ! grep -q '^prometheus ' "$keys"; then
        replace_key prometheus metrics > "$metrics_key"
    fi
    if grep -q '^[^ ]* client ' "$keys"; then
        echo "The keys are those of the first run. To replace a lost key, run: $COMPOSE run --rm setup key"
        return
    fi
    key=$(replace_key client client)
    echo "The next line asks the model about a picture. It has your key, which is only shown now:"
    question "$key"
    echo "If you lose the key, run this to make another: $COMPOSE run --rm setup key"
    echo "Grafana's user is admin, and this command prints the password: $COMPOSE exec grafana cat /run/prismoe/password"
}

random() {
    od -An -N16 -tx1 /dev/urandom | tr -d ' \n'
}

# Prints a new key that replaces those of the name $1.
replace_key() {
    keep_all_but "$1"
    sh "$root/key.sh" "$1" "$2" "$keys.new"
    mv "$keys.new" "$keys"
}

keep_all_but() {
    touch "$keys"
    awk -v name="$1" '$1 != name' "$keys" > "$keys.new"
}

question() {
    case "$IP_ADDRESS" in
        0.0.0.0 | ::) host=localhost ;;
        *:*) host="[$IP_ADDRESS]" ;;
        *) host=$IP_ADDRESS ;;
    esac
    cat << END
printf '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,%s"}}, {"type": "text", "text": "What is this?"}]}]}' "\$(base64 < ../model_plugins/checkpoints/prismoji/pictures/maple-leaf.png | tr -d '\n')" | curl -s http://$host:$SERVER_PORT/v1/chat/completions -H 'Authorization: Bearer $1' -H 'Content-Type: application/json' -d @-
END
}

main "$@"
