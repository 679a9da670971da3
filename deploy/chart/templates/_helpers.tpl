{{- define "nibble.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "nibble.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains (include "nibble.name" .) .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name (include "nibble.name" .) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "nibble.selectorLabels" -}}
app.kubernetes.io/name: {{ include "nibble.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- /* Of helm test's pod, which no selector of the server's may match. */}}
{{- define "nibble.testLabels" -}}
app.kubernetes.io/name: {{ include "nibble.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: test
{{- end }}

{{- /* What all objects carry besides their component's labels. */}}
{{- define "nibble.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "nibble.labels" -}}
{{ include "nibble.selectorLabels" . }}
{{ include "nibble.commonLabels" . }}
{{- end }}

{{- define "nibble.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "nibble.fullname" .) .Values.serviceAccount.name }}
{{- else }}{{ default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "nibble.image" -}}
{{- $repository := required (include "nibble.imageMissing" .) .Values.image.repository -}}
{{- if .Values.image.digest }}{{ $repository }}@{{ .Values.image.digest }}
{{- else }}{{ $repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}
{{- end }}

{{- define "nibble.imageMissing" }}
image.repository is not set, and no registry is assumed. Build the image from the source tree, then name it:

{{ include "nibble.buildLines" . }}
  helm install ... --set image.repository=nibble
{{ end }}

{{- define "nibble.buildLines" -}}
{{- $image := printf "%s:%s" (default "nibble" .Values.image.repository) (default .Chart.AppVersion .Values.image.tag) -}}
{{- "  " }}docker build -f deploy/Dockerfile --target {{ if include "nibble.gpu" . }}cuda --build-arg CUDA=nvidia/cuda:13.0.2-devel-ubuntu24.04{{ else }}cpu{{ end }} -t {{ $image }} .
  kind load docker-image {{ $image }}    # or: docker push {{ $image }}
{{- end }}

{{- /* Not empty when the pod asks for devices: nvidia.com/gpu, nvidia.com/mig-1g.10gb. */}}
{{- define "nibble.gpu" -}}
{{- range $resource, $_ := .Values.resources.limits }}{{ if contains "/" $resource }}true{{ end }}{{ end }}
{{- end }}

{{- /* Its argument: whether the root file system is read-only. */}}
{{- define "nibble.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: {{ . }}
capabilities: {drop: [ALL]}
{{- end }}

{{- define "nibble.modelMount" -}}
- name: models
  mountPath: /models
  {{- with .Values.modelVolume.subPath }}
  subPath: {{ . }}
  {{- end }}
{{- end }}

{{- define "nibble.modelVolume" -}}
{{- $volume := .Values.modelVolume -}}
{{- if eq $volume.kind "fetch" }}emptyDir: {sizeLimit: {{ $volume.fetch.sizeLimit }}}
{{- else if eq $volume.kind "claim" }}persistentVolumeClaim: {claimName: {{ $volume.claim }}, readOnly: true}
{{- else if eq $volume.kind "image" }}image: {reference: {{ $volume.image | quote }}, pullPolicy: IfNotPresent}
{{- else if eq $volume.kind "hostPath" }}hostPath: {path: {{ $volume.hostPath | quote }}, type: Directory}
{{- else }}{{ toYaml $volume.custom }}
{{- end }}
{{- end }}

{{- /* deploy/guard/envoy.yaml.in, filled in as deploy/guard/render does. */}}
{{- define "nibble.guardConfig" -}}
{{- $text := .Files.Get "files/guard/envoy.yaml.in" -}}
{{- if .Values.tls.secretName }}{{ $text = regexReplaceAll "(?m)^#TLS# " $text "      " }}{{ end -}}
{{- if .Values.tls.clientCASecretName }}{{ $text = regexReplaceAll "(?m)^#MTLS#" $text "      " }}{{ end -}}
{{- $text = regexReplaceAll "(?m)^#M?TLS#.*\n" $text "" -}}
{{- $text
  | replace "@LISTEN_ADDRESS@" .Values.guard.listenAddress
  | replace "@LISTEN_PORT@" "50051"
  | replace "@UPSTREAM_PORT@" "50052"
  | replace "@CONNECTION_AGE@" (printf "%ds" (int .Values.connectionAgeSeconds))
  | replace "@CERT@" "/etc/nibble/tls/tls.crt"
  | replace "@KEY@" "/etc/nibble/tls/tls.key"
  | replace "@CLIENT_CA@" "/etc/nibble/client-ca/ca.crt" }}
{{- end }}

{{- /* The file of `nibble serve --config`. */}}
{{- define "nibble.daemonConfig" -}}
models:
  {{- toYaml .Values.models | nindent 2 }}
listen: {{ ternary "127.0.0.1:50052" "[::]:50051" .Values.guard.enabled | quote }}
http: "[::]:8080"
drain-timeout: {{ int .Values.drain.timeoutSeconds }}s
{{- if not .Values.guard.enabled }}
max-connection-age: {{ int .Values.connectionAgeSeconds }}s
{{- if .Values.tls.secretName }}
tls-cert: /etc/nibble/tls/tls.crt
tls-key: /etc/nibble/tls/tls.key
{{- end }}
{{- if .Values.tls.clientCASecretName }}
tls-client-ca: /etc/nibble/client-ca/ca.crt
{{- end }}
{{- end }}
{{- with .Values.config }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Mounts of the certificates, for whoever ends TLS. */}}
{{- define "nibble.tlsMounts" -}}
{{- if .Values.tls.secretName }}
- {name: tls, mountPath: /etc/nibble/tls, readOnly: true}
{{- end }}
{{- if .Values.tls.clientCASecretName }}
- {name: client-ca, mountPath: /etc/nibble/client-ca, readOnly: true}
{{- end }}
{{- end }}
