"""The words of `agent.topics`: regular expressions, one or several alternatives a line, English, German, Spanish, Chinese.

Matched in lower case. Lines of Chinese match anywhere, all others between the bounds of words. Longer phrases come before
what they begin with.
"""

# Tried in this order, and what one topic has taken no later one sees: "how bad" before "bad", "mm per px" before "how many".
TOPICS: dict[str, str] = {
    "scale": r"""
        (?:mm|millimet\w+|milímetros?) (?:per|a|to the|pro|je|por(?: cada)?) (?:one |a )?(?:px|pi[xc]els?|píxel)
        how (?:many|much) (?:mm|millimet\w+)? ?(?:is|does|are)? ?(?:in )?(?:a|one|each) pixel(?: measure| mean| is)?
        pixel[- ]to[- ]\w+(?: calibration)?|size of (?:a|one|each) pixel|pixel size
        pixels? (?:to|into|in) (?:mm|millimet\w+)|mm/px|scale(?: factor)?
        magnification|resolution
        wie (?:groß|viele mm|viele millimeter) (?:ist|hat) ein pixel|maßstab|skalierung|auflösung
        cuánto mide un píxel|cuántos milímetros (?:mide|son|tiene) un píxel|escala|resolución
        比例尺?|每个?像素(?:是|等于|代表)?(?:多少|几)毫米|一个像素(?:是|等于|代表)?(?:多少|几)毫米|分辨率
    """,
    "p": r"""
        p[- ]?values?|p[- ]?wert|valor[- ]p|p[- ]?valor|p
        p ?值
    """,
    "cause": r"""
        (?:most )?(?:probable |likely |possible |root )+(?:reasons?|explanations?|origins?|sources?)
        (?:probable |likely |possible |root )*caus(?:e[sd]?|ing)|(?:come|comes|coming|came) (?:from|about)|brought about
        to blame|origin(?:ate[sd]?)?|led to|leads? to|source
        ursachen?|verursacht|woher (?:kommt|stammt)|entstanden|entsteht
        (?:puede haber |pudo |ha )?causa(?:s|r|do|da|ron)?|causó|origen|a qué se debe|provocado|provocó
        导致|造成|起因|引起|怎么来的|成因
    """,
    "severity": r"""
        how (?:bad(?:ly)?|serious|critical|grave|severe)|sever(?:e|ity|ities)(?: wise)?|serious(?:ness)?|critical|minor
        major|grave
        wie (?:schlimm|schwer|kritisch|ernst)|schwer(?:e|wiegend)?|schweregrad|kritisch
        gravedad|severidad|crític[oa]|(?:qué tan|cómo de|cuán) (?:grave|seri[oa])|grave
        多?严重(?:程度|吗|性)?
    """,
    "confidence": r"""
        (?:how )?(?:sure|certain|confident)|confidence(?: level| value)?|certainty|probability
        konfidenz|wie sicher|sicherheit|sicher
        confianza|certeza|segur[oa]
        置信度|把握|确定|可信度
    """,
    "similarity": r"""
        how (?:close(?:ly)?|alike|near|similar|much alike|well does)|similar(?:ity|ities)?|resembl(?:e|es|ance)
        look alike|match
        wie (?:ähnlich|nah|gut passt)|ähnlich(?:keit)?
        similitud|parecid[oa]|se parecen?|similares?
        相似[度性]?|多像|有多接近
    """,
    "calibration": r"""
        how many (?:known[- ]?)?(?:goldens?|good (?:parts|samples|ones|pieces)|golden samples|samples|references)
        calibrated (?:with|w|on|from|by|against)|calibration (?:sample size|parts?|samples?|set|size)
        wie viele[nr]? (?:gutteilen?|gutmustern?|referenzen|guten teilen?)|kalibriert|kalibrierung
        cuántas (?:piezas|muestras) buenas|calibr(?:ó|ad[oa]|ación)
        多少个?(?:合格|良)品?|多少个?样[品本]|校准
    """,
    "golden": r"""
        (?:nearest |closest |known )?goldens?(?: (?:samples?|parts?|references?|images?))?
        good (?:samples?|ones?|parts?|references?)
        (?:nearest |closest |known )?references?(?: (?:part|sample|image|photo|golden)s?)?|yardstick|benchmark|baseline
        compare[ds]?(?: (?:with|to|against))?|comparison|against what|what against|against
        (?:h[eo]ld|holding|measured|judged|checked|inspected|matched) (?:it |this |the part )?(?:up )?(?:against|with|to)
        gutmuster|gutteil|referenz(?:muster|teil|bild)?|vergleich|verglichen|vergleichsteil
        (?:muestra|pieza) (?:buena|de referencia|patrón)|muestra|referencia|patrón|compar(?:ó|ad[oa]|aste|ación)
        参考(?:样品|样本|件)?|(?:合格|金)?样[品本件]|金样|[与和跟]\S{0,8}比较|对比|对照|标准件
    """,
    "score": r"""
        (?:anomaly |image |difference |overall |total )?scor(?:e|es|ed|ing)|how anomalous
        anomaliewert|punktzahl|bewertung|punktwert|wert|punkte
        puntuación|puntaje
        得分|分数|评分|异常值
    """,
    "thinner": r"""
        thinner(?: (?:than|as))?|narrower(?: (?:than|as))?|wider(?: (?:than|as))?|broader(?: than)?|thicker than
        schmaler|breiter|más (?:anch[oa]|estrech[oa])
    """,
    "width": r"""
        (?:how )?(?:wide|broad)|widths?|breadth
        breite?|anch[oa]|anchura
        多宽|宽度|宽多少
    """,
    "length": r"""
        how long|lengths?|len
        wie lang|länge
        longitud|larg[oa]|(?:cómo de|qué tan|cuán) larg[oa]
        多长|长度|长多少
    """,
    "size": r"""
        how (?:large|big|small|tiny|huge)|sizes?|dimensions?|measurements?|extent
        how much does (?:it|f?\d+|that|this) measure
        wie (?:groß|klein)|größe|maße|abmessung(?:en)?
        tamaño|dimensiones|medidas?|miden?|(?:qué tan|cómo de|cuán) (?:grande|pequeñ[oa])
        多[大小]|尺寸|大小
    """,
    "place": r"""
        wheres?|where(?:abouts)?|locations?|located|positions?|place|placed|which spot
        (?:in |on |at )?(?:what|which) (?:area|region|side|corner|part of the (?:image|photo|picture|part))
        wo|lage|position|dónde|ubicación|ubicad[oa]|posición|en qué (?:lugar|parte|zona|lado)
        在?哪[里儿]|在?(?:哪个|什么)(?:位置|地方|区域)|在哪|何处|位置
    """,
    "area": r"""
        areas?(?: in (?:pixels?|px))?|fläche|área
        面积
    """,
    "seen": r"""
        (?:seen|happened|occurred|found|had|confirmed|shown? up|appeared) (?:this |it |that |one )*(?:before|already|earlier)
        (?:seen|happened|occurred|found|had|confirmed|shown? up|appeared) (?:this |it |that |one )*(?:often|again)
        (?:seen|happened|occurred|found|had|confirmed|shown? up|appeared) (?:this |it |that )*(?:lately|recently|elsewhere)
        (?:seen |found |confirmed )?(?:on|in) (?:any )?other parts|recur(?:s|ring|rent|rence)?|keeps? happening
        how often|how many times
        new problem|(?:a )?repeat|this (?:month|week)
        (?:happen(?:ed|ing|s)?|seen?|had) (?:this |it |that )*(?:again|before)|schon wieder
        schon (?:ein)?mal|schon (?:früher|öfter)|öfter|häufig|wiederholt|visto antes|otras (?:veces|piezas)|a menudo
        con frecuencia
        以前(?:见过|有过|出现过)?|其他零件|多少次|经常
    """,
    "count": r"""
        how many|number of(?= (?:findings|defects|flaws|anomal|issues|problems|faults|spots))|count|wie ?viele?|anzahl
        cuántos|cuántas|cantidad de|número de
        多少[个处]|几[个处]|数量
    """,
    "date": r"""
        (?:when|(?:at )?what time|(?:in )?which (?:day|date|time))(?=.*\b(?:inspect|check|test|look|examin|analy|filed))
        (?:date|day|time|timestamp) (?:of|was) (?:the |this )?(?=inspection|check)
        (?:inspection|check) (?:date|time)
        wann(?=.*(?:geprüft|untersucht|kontrolliert|inspiziert|prüfung))|prüfdatum|cuándo(?=.*(?:inspec|revis))
        fecha de(?: la)? inspección
        (?:什么时候|何时|几点)(?=.*检[查测])|检[查测](?:时间|日期)
    """,
    "why": r"""
        why|y did|how come|reasons?|reasoning|explain(?:s|ed|ing)?|explanation|justif(?:y|ied|ication)|rationale
        on what (?:grounds?|basis)|grounds
        (?:come|came|get|got|arrived?) (?:to|at) (?:that|this|the)|led you|what makes you
        warum|wieso|weshalb|grund|begründung|gründe|por ?qué|razón|razones|motivos?
        为什么|为何|原因|理由|依据
    """,
    "type": r"""
        (?:what|which) (?:kind|type|sort|class)(?: of)?|types?|kind of|sort of|categor(?:y|ies)|class
        classif(?:y|ied|ication)
        welche art(?: von)?|(?:um )?was für (?:ein|eine|einen)|art des|fehlerart|defektart|tipos?(?: de)?|clase de
        qué clase
        (?:什么)?类型|种类|什么类|哪种|哪类|什么样的?
    """,
    "verdict": r"""
        verdicts?|pass(?:es|ed|ing)?|fail(?:s|ed|ing|ure)?|ok(?:ay)?|good to go|good|bad|fine|clear|accept(?:ed|able)?
        reject(?:ed|ion)?
        results?|outcome|conclusion|decision|decided?|judg(?:e|ed|ment|ement)|status|go or no[- ]?go|worry about
        ma[dk]e it through|through
        usable|thumbs up|pass/fail|review|no problems?|in order|all right|alright
        urteil|ergebnis|entscheidung|in ordnung|bestanden|durchgefallen|durch|i\.?o\.?|gut|schlecht|ausschuss
        brauchbar
        veredicto|resultado|decisión|dictamen|aprobad[oa]|aprobó|aprueba|rechazad[oa]|rechazó|falló|pasó|pasa|bien
        buen[oa]|mal[oa]
        aceptad[oa]|apt[oa]|conforme
        合格|结[论果]|判[定断决]|通过|良品|不良品?|没问题|好的|能用|过关
    """,
    "within": r"""
        within|shorter(?: than)?|longer(?: than)?|smaller(?: than)?|larger(?: than)?|bigger(?: than)?|below
        under(?:neath)?|beneath
        less(?: than)?|more(?: than)?|greater than|over|above|past|beyond|exceed(?:s|ed|ing)?|at most|at least|stays?
        up to
        limits?|allow(?:s|ed)?
        tolerances?|tolerable|tolerated?|cut-?off|threshold|max(?:imum)?|min(?:imum)?
        innerhalb|unter|über|kürzer|länger|kleiner|größer|als|höchstens|maximal|mindestens|toleranz|grenze|erlaubt
        dentro|menor|menos|mayor|más|que|límite|supera|excede|tolerancia|máximo|mínimo
        以内|小于|大于|不超过|超过|超出|低于|高于|之内|短于|长于
    """,
    "list": r"""
        list|findings|defects|flaws|anomalies|issues|problems|faults|damages?|overview|rundown|recap|tl;?dr|in short
        gist|brief(?:ly)?
        short version|sum (?:\w+ ){1,3}up|summar(?:y|ise|ize|ised|ized)|describe|description|details?
        what(?: exactly)?(?: is)? (?:wrong|the matter)|everything
        what did (?:you|we|it) (?:find|see|detect|notice)
        what (?:was|were|have you|is there)(?: (?:found|detected|seen))?
        any(?:thing)? (?:wrong|found|unusual|odd|suspicious|missing)
        any(?:thing)? (?:defects?|flaws?|damages?|problems?|issues?|anomal(?:y|ies)|findings?)
        befunde|mängel|schäden|überblick|zusammenfassung|zusammenfassen|fasse|zusammen|kurz(?:fassung)?
        beschreib(?:e|ung)?|was stimmt nicht
        was (?:wurde|hast du|habt ihr) (?:gefunden|entdeckt)
        defectos|hallazgos|problemas|resumen|resum[ei]r?|descripción|describe|detalles|algún (?:defecto|problema)
        encontraste
        qué (?:encontraste|se encontró|has encontrado|hay de malo)
        列出|描述|总结|概述|概要|简述|哪些(?:缺陷|问题)|有什么?(?:缺陷|问题)|发现了什么|所有
    """,
}
# Words of what no report tells. A question with one of them is none that words can answer.
ELSEWHERE = r"""
    average|total length|sum of|how (?:often|many times) .{0,30}(?:inspect|check|test)\w*|without the|(?:a|any) person
    who(?:se|m|ever)?|operators?|workers?|employees?|staff|people|colleagues?|inspectors?|managers?|team|crew
    shift|responsible|company
    suppliers?|vendors?|manufacturers?|customers?|clients?|factory|plant|country|line|station|robot|spindle
    drill(?:ed|ing)?|mould|mold|oven
    furnace|(?:machine|tool|line) (?:setting|speed|number)s?|settings?|program(?:me)?|feed|speed|pressure|force|torque
    temperature|humid(?:ity)?
    weather|climate|air|room|hall|lighting|lights?|lamp|illumination|brightness|camera|lens|aperture|exposure|iso
    equipment|the machine|machine (?:that|which)|how many (?:parts|pieces|units|others)|edges?|away from
    cost(?:s|ing)?|prices?|pay|paid|money|euros?|eur|dollars?|usd|budget|cheap(?:er)?|expensive|worth|refund
    compensation|insurance|set us back
    weights?|weighs?|heavy|mass|deep(?:er)?|depth|thick(?:er|ness)?(?! than)|how high is (?:it|the part)|height|tall
    volume|density|hardness
    rough(?:ness)?|colou?rs?
    materials?|alloy|steel|plastic|metal(?:lic)?|glass|organic|chemical|composition|made (?:of|from|in|by|out|at|on)
    manufactured|produced?
    production|processed|cast(?:ing)?|coated|painted|assembled|built|delivered|shipped|arrived?|purchased?|bought|sold
    order(?:ed)?|stock|made\?
    batch|lot|serial|part number|drawing|blueprint|bom|specification|specs?|standard|norm|cpk?|yield|rate|throughput
    downtime|trend|statistics
    previous|prior|next|following|earlier part|(?<!on )(?<!in )other (?:parts?|cells?|bottles?|labels?|boards?|ones)
    another part
    neighbou?r(?:ing)?|adjacent
    part (?:before|after)|(?:before|after) (?:this|it|that|the)|rest of|today|yesterday|tomorrow|tonight|morning
    last (?:part|week|year|one we)|will (?:it|this|that) be|next time|reviewed|approved?|overrid\w+|signed off
    sign (?:it )?off|anybody|freigegeben
    monday|tuesday|wednesday|thursday|friday|saturday|sunday|years?|days?|hours?|minutes?|ago|since
    should (?:we|i|you|they)|shall (?:we|i)|must (?:we|i)|i must|we must|(?:can|do|may) (?:we|i) (?:still|ship|use|just)
    anyway
    recommend(?:ed|ation)?s?|suggest(?:ed|ion)?s?|advice|what (?:can|do|must|should) (?:we|i) do
    repair(?:ed|able)?|rework(?:ed|able)?|fix(?:ed|able)?|cleaned|cleaning|cleaner|clean (?:it|this|the)|wash(?:ed|ing)?
    wip(?:e|ed|ing)
    polish(?:ed|ing)?
    replac(?:e|ed|ing|ement)|sand(?:ed|ing)?|solvent|alcohol|liquid|throw|discard|recycle|still work|working
    function(?:s|al)?
    perform(?:s|ance)?|power|volt(?:s|age)?|watts?|current|efficiency|electrical|leak(?:s|age)?|lifetime|safe(?:ty)?
    danger(?:ous)?|risk|fatal
    propagate|grow(?:ing|s)?|spread(?:ing|s)?|worse|maintenance|serviced?|warranty|certificat(?:e|ion)|training|trained
    software|version
    (?:did|does|do|will|would) .{1,30} take|took|takes? (?:to|long)|underside|back ?side|inside|reverse|other side
    radius|diameter|angle|curvature|distance|inch(?:es)?
    cm|centimet(?:er|re)s?
    µm|microns?|kg|grams?|password|e-?mail|phone|photographed|lens
    (?:photo|picture|image|golden|reference|sample) (?:was )?taken|taken (?:on|at|in|by)
    wer|wessen|mitarbeiter|bediener|schicht|lieferant(?:en)?|hersteller|kunden?|firma|werk|maschinen?|werkzeug
    temperatur|luftfeuchtigkeit|druck
    kamera|objektiv|licht|beleuchtung|belichtung|kost(?:et|en)|preis|euro|wiegt|gewicht|tief|tiefe|dick|dicke|höhe
    material|werkstoff|farbe
    hergestellt|gefertigt|produziert|geliefert|gereinigt|reinigen|putzen|repar(?:iert|ieren)|ersetz(?:t|en)|ersatzteil
    nacharbeit(?:en)?|charge
    seriennummer|zeichnung|vorherige[rsn]?|nächste[rsn]? (?:teil|prüfung|wartung)|davor|danach|gestern|heute|morgen
    woche|wartung|soll(?:en|te|ten)?
    andere[rsnm]? teile?|empf(?:ehl|iehl)\w*|dauert|aufgenommen|losnummer
    quién(?:es)?|operari[oa]s?|operador|turno|proveedor|fabricante|cliente|empresa|máquina|herramienta|temperatura
    humedad|presión|cámara|lente|luz
    iluminación|cuesta|costo|coste|precio|dinero|pesa|peso|profund[oa]|profundidad|gruesa?|grueso|grosor|espesor|altura
    material|color|fabric\w+
    produj\w+|entreg\w+|limpi\w+|repar\w+|reemplaz\w+|montó|lote|serie|plano|anterior|siguiente|próxim[oa]|ayer|hoy
    mañana|semana|mes|otras? piezas?
    debemos|debería|recomiend\w+|mantenimiento|tardó|tarda|tomó
    谁|操作员|工人|班次|供应商|厂家|客户|公司|机器|设备|刀具|温度|湿度|压力|相机|镜头|光|价|钱|成本|费用|多重|重量|多深|深度|多厚|厚度|高度|材料|材质|颜色
    制造|生产|交货|清洗|清洁|修|更换|返工|批次?|批号|序列号|图纸|上一个|下一个|前一个|后一个|昨天|今天|明天|上周|下周|上个?月|应该|建议|维护|速度
    其他的?零件
"""
# What is left of questions about other times than the inspection's.
LEFT_OVER = """
    when|wann|cuándo
    什么时候|何时
"""
# What turns a place or a type into its opposite.
EXCLUDED = """
    (?<!or )not|but|except|apart from|other than|nicht|außer|excepto|salvo
    不在|除了|不是
"""
# Turns of phrase whose words would name a side, a rank or a time.
IDIOMS = """
    ^(?:all right|alright|right|ok(?:ay)?|so|well),|right now|right then|am i right
    (?:have |got |get )(?:this|it|that) right|no longer
    on top of (?:that|this|it)
    first of all|at first|in the first place|(?:wait |just )*(?:a|one) second|at last|one last (?:thing|question)
    last thing|in the end
"""
# "how long is the part?" asks for none of a finding.
BEFORE_THINGS = r"(?:is|are|of|does|has|ist|mide|es) (?:the|this|that|my|our|das|die|der|la|el)(?: whole| entire)?"
THINGS = r"part|piece|image|photo|picture|report|golden|reference|sample|scale|teil|bild|foto|pieza|imagen"
# Words that name no topic.
NOTHING = r"""
    thats|whats|gimme|lemme|i[mdv]|dont|isnt|cant|u|r|n
    the|an?|of|is|isn|are|aren|was|wasn|were|weren|be|been|being|it|its|itself|they|them|this|that|these|those|there|don
    does|did|didn|doesn|do
    has|have|had|having|what|which|how|to|in|on|at|for|with|from|by|as|into|me|my|we|us|you|your|i|our|if|while
    whether|just|simply
    please|pls|plz|can|couldn|could|wouldn|would|will|won|shall|should|might|may|must|tell|telling|give|gave|given|show
    showing|see|seen|name
    know|knew|known|like|want|need|say|says|said|saying|so|then|and|or|not|yes|but|too|also|now|right|exactly|exact
    precisely|precise|really
    still|even|only|used?|using|convert|find|found|detect(?:ed)?|report(?:ed)?|measure[ds]?|calculated|computed
    estimated?|spot(?:ted)?
    got|get|gets|turn(?:ed|s)? (?:up|out)|actual(?:ly)?|overall|final(?:ly)?|main|likely|probabl[ey]|possibl[ey]
    happen(?:s|ed)?|here|well
    occur(?:red|s)?|form(?:ed)?|any|all|each|every|ones?|both|either|else|sit|sits|sitting|lies?|lying|look(?:s|ed|ing)?
    seems?|deemed|let
    parts?|pieces?|item|unit|things?|image|photo|picture|shot|inspection|inspect(?:ed)?|defect|defective|finding|flaw
    flawed|anomaly|anomalous
    issue|problem|fault|marks?|spots?|area|corner|side|end|no|number|num|nr|id|total|mm|millimet(?:er|re)s?|px|pixels?
    value|level|called?
    quick(?:ly)?|question|again|mind|idea|thanks?|hi|hello|hey|curious|wonder(?:ing)?|remind|roughly|approximately|about
    much|many|some
    someone|something|anything|nothing|anyone|person|human|apart|whole|behind|come|came|comes|out|up|down|because|due
    based|suspect(?:ed)?
    think|thought|reckon|believe|guess|feel|system|model|make|makes|two|three|of them|outright|check(?:ed|ing)?
    test(?:ed)?|run|ran|w|long|examined
    analy[sz]ed|filed|place|bit|bits|big|small|just|for sure|ever|else|sort|hope|hoping|hoped|lovely|great|nice
    interested|asking|asked|ask
    der|die|das|den|dem|des|ein(?:e[rnms]?)?|ist|sind|war|waren|wurden?|wird|werden|hat|haben|es|er|sie|wie|was|wer
    lautet|lauten|ob|hoch
    welche[rsnm]?|zu|zum|zur|im|in|am|an|auf|aus|von|vom|für|mit|bei|beim|und|oder|bitte|mir|uns|man|teile?s?|bauteil
    werkstück|bild|foto
    befunds?|bericht|defekts?|fehlers?|anomalie|nummer|gibt|denn|kannst|könntest|kann|sag|sage|zeig|nenne|kommt
    verwendet|benutzt|gefunden
    erkannt|gemessen|geprüft|untersucht|kontrolliert|prüfung|liegt|sitzt|befindet|sich|genau|eigentlich|also|noch|alle
    alles|du|ihr|ich|nicht
    da|dort|dieser|diese|dieses|wahrscheinlich(?:e[nrs]?)?|system
    el|la|los|las|un|una|es|son|fue|era|hay|está|están|tiene|tienen|hubo|qué|que|cuál|cuáles|cuánt[oa]|cómo|de|del|en
    con|por|para|a|al|favor
    se|lo|le|me|y|o|si|sí|no|pieza|imagen|foto|informe|inspección|inspeccion(?:ó|ada)|revis(?:ó|ada)|defecto|hallazgo
    problema|anomalía|dime
    dame|usó|utilizó|encontrado|encontró|número|exactamente|exacto|pudo|puede|podría|dio|tan|muy|probable|este|esta|esto
    ese|esa|milímetros
    [的角是了吗呢吧啊请问这那个有在什么哪它我你您第号被把和与为多少怎样用过能到出到底共总来得上处里给值从]
    零件|缺陷|发现|告诉|一下|报告|检[查测]|大概|可能|图片|照片|毫米|像素|使用|一共|总共|说明|时候|时间
"""
ORDINALS = (
    """
    first|1st|erste[rsnm]?|primer[oa]?
    第一[个处]?
    """,
    """
    second|2nd|zweite[rsnm]?|segund[oa]
    第二[个处]?
    """,
    """
    third|3rd|dritte[rsnm]?|tercer[oa]?
    第三[个处]?
    """,
    """
    fourth|4th|vierte[rsnm]?|cuart[oa]
    第四[个处]?
    """,
    """
    fifth|5th|fünfte[rsnm]?|quint[oa]
    第五[个处]?
    """,
    """
    sixth|6th|sechste[rsnm]?|sext[oa]
    第六[个处]?
    """,
)
LAST = """
    last|letzte[rsnm]?|últim[oa]
    最后一?[个处]?
"""
NUMBERS = ("one", "two", "three", "four", "five", "six")  # "finding two"; alone, "one" is a pronoun
LARGEST = """
    largest|biggest|longest|the (?:larger|bigger|longer)(?: one)?(?! than)|größte[rsnm]?|längste[rsnm]?
    más (?:grande|larg[oa])
    最[大长]的?
"""
SMALLEST = """
    smallest|shortest|the (?:smaller|shorter)(?: one)?(?! than)|kleinste[rsnm]?|kürzeste[rsnm]?
    más (?:pequeñ[oa]|cort[oa])
    最[小短]的?
"""
# What people call defects of a type; a word of a type that no finding has names any finding, as those of "" do.
CALLED: dict[str, str] = {
    "scratch": """
        scratch(?:es)?|scuffs?|kratzer[ns]?|rasguños?|arañazos?|ray(?:ón|ones|as?)
        划痕|刮痕
    """,
    "crack": """
        cracks?|fractures?|riss(?:e[ns]?)?|grietas?|fisuras?
        裂纹|裂缝
    """,
    "hole": """
        holes?|loch(?:s|es)?|löcher|agujeros?|orificios?
        孔洞?|洞
    """,
    "dent": """
        dents?|dellen?|abolladuras?
        凹痕|凹陷
    """,
    "contamination": """
        contaminations?|dirt|specks?|blobs?|dust|particles?|residue|schmutz
        verunreinigung(?:en)?
        verschmutzung(?:en)?|staub|suciedad|contaminación
        污点|脏污|污染|斑点
    """,
    "missing_component": """
        missing(?: (?:part|piece|component|bit|one))?|component(?: is)? missing|gaps?|absent|fehlt
        fehlende[rsnm]?(?: teile?s?)?|lücken?|falta(?:nte)?
        缺失|缺件|缺口
    """,
    "misplaced_component": """
        misplaced|displaced|shifted|verschoben|desplazad[oa]
        移位|偏移
    """,
    "stain": """
        stains?|smudges?|flecken?s?|manchas?
        污[渍迹]
    """,
    "chip": """
        chip(?:ped|s)?|breaks?|broken|bruch|gebrochen|rotura|rot[oa]
        破损|断裂|缺角
    """,
    "": """
        blemish(?:es)?|imperfections?|irregularit(?:y|ies)|auffälligkeit(?:en)?|stelle|anomalien?
        异常
    """,
}
SIDES = {
    "upper": """
        (?:upper|top)(?: (?:part|half|edge))?|oben|oberen?|superior|arriba
        (?<=[左右])上|上(?=[方部边侧角])|顶部
    """,
    "lower": """
        (?:lower|bottom)(?: (?:part|half|edge))?|unten|unteren?|inferior|abajo
        (?<=[左右])下|下(?=[方部边侧角])|底部
    """,
    "left": """
        (?<!is )left(?:[- ]hand)?|links|linken?|izquierd[oa]
        左[侧边面]?
    """,
    "right": """
        (?<!all )(?<!that )right(?:[- ]hand)?|rechts|rechten?|derech[oa]
        右[侧边面]?
    """,
    "middle": """
        middle|cent(?:re|er)|mitte|mittleren?|centro|central|medio
        中[间央心部]
    """,
}
