# Helpers that mend or break an unpacked node tree with openssl alone; no line of the program under test is used.
# Sourced by the scripts of the cases, which get the tree as their first argument.
set -eu
LIB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
T=${1:?the unpacked tree}; T=$(cd "$T" && pwd)
K=$T/etc/kubernetes; P=$K/pki; KP=$T/var/lib/kubelet/pki
# again CRT KEY CABASE DAYS: the same names and uses, signed anew by CABASE.crt/.key, from now
again() { local d; d=$(mktemp -d)
  openssl x509 -in "$1" -signkey "$2" -x509toreq -copy_extensions copyall -out "$d/r" 2>/dev/null
  openssl x509 -req -in "$d/r" -CA "$3.crt" -CAkey "$3.key" -days "$4" -copy_extensions copyall -set_serial "0x$(openssl rand -hex 8)" -out "$d/c" 2>/dev/null
  cat "$d/c" > "$1"; rm -r "$d"; }
# issue SUBJECT CABASE DAYS OUT.crt OUT.key: a new client certificate
issue() { local d; d=$(mktemp -d)
  openssl req -new -newkey rsa:2048 -nodes -keyout "$d/k" -subj "$1" -out "$d/r" 2>/dev/null
  printf 'keyUsage=critical,digitalSignature,keyEncipherment\nextendedKeyUsage=clientAuth\nbasicConstraints=critical,CA:FALSE\n' > "$d/x"
  openssl x509 -req -in "$d/r" -CA "$2.crt" -CAkey "$2.key" -days "$3" -extfile "$d/x" -set_serial "0x$(openssl rand -hex 8)" -out "$d/c" 2>/dev/null
  cat "$d/c" > "$4"; cat "$d/k" > "$5"; chmod 600 "$5"; rm -r "$d"; }
# conf_get FILE FIELD / conf_set FILE FIELD PEMFILE: a base64 field of a kubeconfig
conf_get() { sed -n "s/^ *$2: //p" "$1" | base64 -d; }
conf_set() { local v; v=$(base64 -w0 < "$3"); sed -i "s|^\( *$2: \).*|\1$v|" "$1"; }
# kubelet_user FILE inline CRT KEY | kubelet_user FILE files CRTPATH KEYPATH: what kubelet.conf authenticates with
kubelet_user() { sed -i '/client-certificate\|client-key/d' "$1"
  if [ "$2" = inline ]; then printf '    client-certificate-data: %s\n    client-key-data: %s\n' "$(base64 -w0 < "$3")" "$(base64 -w0 < "$4")" >> "$1"
  else printf '    client-certificate: %s\n    client-key: %s\n' "$3" "$4" >> "$1"; fi; }
# store_pem NAME CRT KEY: as the kubelet stores a rotated one, with its link
store_pem() { cat "$2" "$3" > "$KP/kubelet-client-$1.pem"; chmod 600 "$KP/kubelet-client-$1.pem"
  ln -sfn "/var/lib/kubelet/pki/kubelet-client-$1.pem" "$KP/kubelet-client-current.pem"; }
# healthy: every leaf of the control plane and the kubelet's own are good for a year from now, so that only the case's fault is left
healthy() { local d n; d=$(mktemp -d)
  for n in apiserver apiserver-kubelet-client; do again "$P/$n.crt" "$P/$n.key" "$P/ca" 365; done
  again "$P/front-proxy-client.crt" "$P/front-proxy-client.key" "$P/front-proxy-ca" 365
  for n in apiserver-etcd-client etcd/server etcd/peer etcd/healthcheck-client; do again "$P/$n.crt" "$P/$n.key" "$P/etcd/ca" 365; done
  for n in admin controller-manager scheduler; do
    conf_get "$K/$n.conf" client-certificate-data > "$d/c"; conf_get "$K/$n.conf" client-key-data > "$d/k"
    again "$d/c" "$d/k" "$P/ca" 365; conf_set "$K/$n.conf" client-certificate-data "$d/c"; done
  cp "$K/admin.conf" "$T/root/.kube/config"
  issue "/O=system:nodes/CN=system:node:k8s-master01" "$P/ca" 365 "$d/c" "$d/k"; store_pem 2026-09-01-10-00-00 "$d/c" "$d/k"
  rm -r "$d"; }
