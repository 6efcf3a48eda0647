{{- define "attestry.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Call with (list . ROLE), as most below. */}}
{{- define "attestry.name" -}}
{{ include "attestry.fullname" (first .) }}-{{ last . }}
{{- end -}}

{{- define "attestry.selector" -}}
app.kubernetes.io/name: attestry
app.kubernetes.io/instance: {{ (first .).Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end -}}

{{- define "attestry.labels" -}}
{{- $root := first . -}}
{{ include "attestry.selector" . }}
app.kubernetes.io/part-of: attestry
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{- define "attestry.meta" -}}
name: {{ include "attestry.name" . }}
namespace: {{ (first .).Release.Namespace }}
labels: {{- include "attestry.labels" . | nindent 2 }}
{{- end -}}

{{- define "attestry.image" -}}
{{- $root := first . -}}
{{- $image := index $root.Values.images (last .) -}}
{{- printf "%s/%s:%s" ($root.Values.global.imageRegistry | trimSuffix "/") $image.repository ($root.Values.images.tag | default $root.Chart.AppVersion) -}}
{{- with $image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{- define "attestry.ha" -}}
{{- if eq .Values.profile "ha" }}true{{ end -}}
{{- end -}}

{{- define "attestry.offline" -}}
{{- if or (ne .Values.profile "single") .Values.tuf.offlineRoot.existingSecret }}true{{ end -}}
{{- end -}}

{{/* Stores outside the cluster: then tlog may have replicas. */}}
{{- define "attestry.shared" -}}
{{- if and .Values.tlog.database.uri .Values.tlog.fence.uri }}true{{ end -}}
{{- end -}}

{{- define "attestry.replicas" -}}
{{- $root := first . -}}
{{- $n := (index $root.Values (last .)).replicas -}}
{{- if kindIs "invalid" $n }}{{ if include "attestry.ha" $root }}2{{ else }}1{{ end }}{{ else }}{{ int $n }}{{ end -}}
{{- end -}}

{{/* URL of a role for clients, without a slash at its end. */}}
{{- define "attestry.url" -}}
{{- $root := first . -}}
{{- $role := last . -}}
{{- $v := $root.Values -}}
{{- $host := index $v.ingress.hosts $role | default $v.ingress.host -}}
{{- if index $v.urls $role -}}
{{- index $v.urls $role | trimSuffix "/" -}}
{{- else if and $v.ingress.enabled $host -}}
{{- printf "%s://%s" (ternary "https" "http" $v.ingress.tls.enabled) $host -}}
{{- else -}}
{{- include "attestry.internal" . -}}
{{- end -}}
{{- end -}}

{{/* URL of a role inside the cluster. */}}
{{- define "attestry.internal" -}}
{{- $root := first . -}}
{{- $port := (index $root.Values (last .)).service.port -}}
http://{{ include "attestry.name" . }}.{{ $root.Release.Namespace }}.svc{{ if ne (int $port) 80 }}:{{ $port }}{{ end }}
{{- end -}}

{{- define "attestry.host" -}}
{{- $h := (urlParse (include "attestry.url" .)).host -}}
{{- regexReplaceAll ":[0-9]+$" $h "" -}}
{{- end -}}

{{/* The Secret of a role, and the ConfigMap of the public halves. */}}
{{- define "attestry.secret" -}}
{{- $root := first . -}}
{{- (index $root.Values (last .)).existingSecret | default (printf "%s-%s" (include "attestry.prefix" $root) (last .)) -}}
{{- end -}}

{{- define "attestry.prefix" -}}
{{- .Values.keys.secretPrefix | default (include "attestry.fullname" .) -}}
{{- end -}}

{{- define "attestry.public" -}}
{{ include "attestry.prefix" . }}-public
{{- end -}}

{{/* All issuers, as the issuer file has them. */}}
{{- define "attestry.issuers" -}}
{{- $file := deepCopy .Values.ca.issuers -}}
{{- if .Values.config.contents -}}
{{- $file = mergeOverwrite (deepCopy .Values.config.contents) $file -}}
{{- end -}}
{{- $given := list -}}
{{- range $key := list "oidc-issuers" "OIDCIssuers" -}}
{{- if hasKey $file $key -}}{{- $given = append $given (index $file $key) -}}{{- $_ := unset $file $key -}}{{- end -}}
{{- end -}}
{{- if .Values.config.OIDCIssuers -}}{{- $given = append $given .Values.config.OIDCIssuers -}}{{- end -}}
{{- $all := list -}}
{{- range $given -}}
{{- if kindIs "slice" . -}}
{{- $all = concat $all . -}}
{{- else -}}
{{- range $url, $issuer := . -}}
{{- if not (or (hasKey $issuer "issuer-url") (hasKey $issuer "IssuerURL")) -}}{{- $issuer = merge (dict "issuer-url" $url) $issuer -}}{{- end -}}
{{- $all = append $all $issuer -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if .Values.ca.clusterIssuer.enabled -}}
{{- $c := .Values.ca.clusterIssuer -}}
{{- $all = append $all (dict "issuer-url" $c.url "client-id" $c.audience "type" "kubernetes" "discovery-url" "https://kubernetes.default.svc") -}}
{{- end -}}
{{- if $all -}}{{- $_ := set $file "oidc-issuers" $all -}}{{- end -}}
{{- toYaml $file -}}
{{- end -}}

{{/* URLs of the issuers for the signing config: those of other people first. */}}
{{- define "attestry.issuerURLs" -}}
{{- range (index (fromYaml (include "attestry.issuers" .)) "oidc-issuers" | default list) }}
- {{ get . "issuer-url" | default (get . "IssuerURL") | quote }}
{{- end }}
{{- end -}}

{{- define "attestry.match" -}}
{{- include "attestry.selector" . | fromYaml | toJson -}}
{{- end -}}
